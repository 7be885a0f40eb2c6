//! Compiles the agent's API and CRI with protox, so that no `protoc` is needed for it.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

/// Messages whose only field, of number 1, is a list: a server sends them with their items encoded already.
const LISTS: [&str; 4] =
    ["ListPodSandboxResponse", "ListContainersResponse", "StreamPodSandboxesResponse", "StreamContainersResponse"];

fn main() -> Result<(), Box<dyn Error>> {
    for (file, feature) in [("proto/agent.proto", "CARGO_FEATURE_AGENT"), ("proto/cri.proto", "CARGO_FEATURE_CRI")] {
        println!("cargo:rerun-if-changed={file}");
        if env::var_os(feature).is_none() {
            continue;
        }
        let files = protox::compile([file], ["proto"])?;
        if feature == "CARGO_FEATURE_CRI" {
            let out = PathBuf::from(env::var("OUT_DIR")?).join("servers");
            fs::create_dir_all(&out)?;
            // Every message is the one that is generated below, but those.
            let servers = tonic_prost_build::configure().build_client(false).out_dir(out);
            let servers = servers.extern_path(".runtime.v1", "crate::cri");
            LISTS
                .iter()
                .fold(servers, |s, list| s.extern_path(format!(".runtime.v1.{list}"), "crate::cri::EncodedList"))
                .compile_fds(files.clone())?;
            tonic_prost_build::configure().build_server(false).compile_fds(files)?;
        } else {
            tonic_prost_build::configure().compile_fds(files)?;
        }
    }
    Ok(())
}
