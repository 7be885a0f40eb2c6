//! Compiles the agent's API and CRI with protox, so that no `protoc` is needed for it.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

/// Messages whose only field, of number 1, is a list: a server sends them with their items encoded
/// already.
const LISTS: [&str; 4] =
    ["ListPodSandboxResponse", "ListContainersResponse", "StreamPodSandboxesResponse", "StreamContainersResponse"];

/// Messages of CRI that people are shown as JSON (the daemon's `translate::inspect`), and write as
/// JSON (for crictl).
const SHOWN: [&str; 33] = [
    "CDIDevice",
    "Capability",
    "CgroupNamespace",
    "ContainerConfig",
    "ContainerMetadata",
    "DNSConfig",
    "Device",
    "HugepageLimit",
    "IDMapping",
    "ImageSpec",
    "Int64Value",
    "KeyValue",
    "LinuxContainerConfig",
    "LinuxContainerResources",
    "LinuxContainerSecurityContext",
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "Mount",
    "NamespaceOption",
    "PodSandboxConfig",
    "PodSandboxMetadata",
    "PortMapping",
    "SELinuxOption",
    "SecurityProfile",
    "SecurityProfileBase",
    "UserNamespace",
    "WindowsContainerConfig",
    "WindowsContainerResources",
    "WindowsContainerSecurityContext",
    "WindowsCpuGroupAffinity",
    "WindowsNamespaceOption",
    "WindowsPodSandboxConfig",
    "WindowsSandboxSecurityContext",
];
const AS_JSON: &str = "#[derive(serde::Serialize, serde::Deserialize)]";
/// Fields of them whose names or values are written otherwise than by default.
const SHOWN_AS: [(&str, &str); 4] = [
    ("KeyValue.value", "#[serde(with = \"crate::cri::as_text\")]"),
    ("Mount.uidMappings", "#[serde(rename = \"uidMappings\")]"),
    ("Mount.gidMappings", "#[serde(rename = \"gidMappings\")]"),
    ("ContainerConfig.CDI_devices", "#[serde(rename = \"CDI_devices\")]"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        ("proto/agent.proto", "CARGO_FEATURE_AGENT"),
        ("proto/cri.proto", "CARGO_FEATURE_CRI"),
        ("proto/images.proto", "CARGO_FEATURE_CRI"),
    ];
    for (file, feature) in files {
        println!("cargo:rerun-if-changed={file}");
        if env::var_os(feature).is_none() {
            continue;
        }
        let files = protox::compile([file], ["proto"])?;
        if file == "proto/cri.proto" {
            let out = PathBuf::from(env::var("OUT_DIR")?).join("servers");
            fs::create_dir_all(&out)?;
            // Every message is the one that is generated below, but those.
            let servers = tonic_prost_build::configure().build_client(false).out_dir(out);
            let servers = servers.extern_path(".runtime.v1", "crate::cri");
            LISTS
                .iter()
                .fold(servers, |s, list| s.extern_path(format!(".runtime.v1.{list}"), "crate::cri::EncodedList"))
                .compile_fds(files.clone())?;
            let mut messages = tonic_prost_build::configure().build_server(false);
            for message in SHOWN {
                let message = format!(".runtime.v1.{message}");
                messages = messages.type_attribute(&message, AS_JSON).message_attribute(&message, "#[serde(default)]");
            }
            for (field, attribute) in SHOWN_AS {
                messages = messages.field_attribute(format!(".runtime.v1.{field}"), attribute);
            }
            messages.compile_fds(files)?;
        } else {
            tonic_prost_build::configure().compile_fds(files)?;
        }
    }
    Ok(())
}
