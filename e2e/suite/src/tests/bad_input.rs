//! Bad input: each row is refused with the right gRPC code and leaves nothing behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::Test;
use crate::bad_registry;
use crate::crictl::{Crictl, Pod};
use crate::daemon;
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[
    ("bad_input_unknown_handler", unknown_handler),
    ("bad_input_wrong_digest_from_the_registry", || refused_pull("corrupt/cofferdam/victim:1", &["digest"], false)),
    ("bad_input_registry_down_in_mid_blob", || {
        refused_pull("cut/cofferdam/victim:1", &["RegistryUnavailable: registry"], true)
    }),
    ("bad_input_tar_entry_that_climbs_out", climbing),
    ("bad_input_vm_where_kvm_does_not_work", no_kvm),
    ("bad_input_host_namespaces_in_a_vm_pod", host_namespaces),
];

fn unknown_handler() -> Outcome {
    let pod = Pod::new("nohandler").file()?;
    Crictl::default()
        .refused(&["runp", "--runtime", "no-such-handler", &pod], &["code = InvalidArgument", "no-such-handler"])
}

/// Files of the image store; with `kept`, without what it keeps of a broken pull for the next one.
fn store(kept: bool) -> Outcome<String> {
    let output = Command::new("find")
        .args(["/var/lib/cofferdam/images", "-maxdepth", "2", "-not", "-name", "*.redb"])
        .output()
        .doing("list the image store")?;
    let mut lines: Vec<&str> = std::str::from_utf8(&output.stdout).doing("read the listing")?.lines().collect();
    lines.retain(|line| !kept || !line.contains("/tmp/layer-"));
    lines.sort_unstable();
    Ok(lines.join("\n"))
}

/// Pulls an image whose layers no good image of the suite has, or the bad registry's bytes would
/// not be read.
fn refused_pull(repository: &str, wanted: &[&str], kept: bool) -> Outcome {
    let crictl = Crictl::default();
    let before = store(kept)?;
    let image = format!("{}/{repository}", bad_registry::ADDRESS);
    crictl.refused(&["pull", &image], wanted)?;
    let images = crictl.run(&["images", "-o", "json"])?;
    ensure!(!images.contains(bad_registry::ADDRESS), "the bad image is listed: {images}");
    let after = store(kept)?;
    ensure!(before == after, "files stay in the store:\n{before}\n-- after:\n{after}");
    Ok(())
}

/// A name that climbs is cleaned, as in other runtimes: the file is in the image and nowhere else.
fn climbing() -> Outcome {
    let crictl = Crictl::default();
    let image = format!("{}/climb/evil:1", bad_registry::ADDRESS);
    crictl.run(&["pull", &image])?;
    let layers = Path::new("/var/lib/cofferdam/images/layers");
    let inside = fs::read_dir(layers)
        .doing("list the layers")?
        .filter_map(Result::ok)
        .filter(|layer| layer.path().join("fs/climbed-out").is_file())
        .count();
    crictl.run(&["rmi", &image])?;
    ensure!(inside == 1, "{inside} layers have the file");
    for folder in ["/", "/var", "/var/lib", "/var/lib/cofferdam", "/var/lib/cofferdam/images"] {
        ensure!(!Path::new(folder).join("climbed-out").exists(), "the entry climbed out into {folder}");
    }
    Ok(())
}

/// A second daemon that sees a /dev/kvm which is none.
fn no_kvm() -> Outcome {
    let folder = Path::new("/run/cofferdam-nokvm");
    fs::create_dir_all(folder).doing("make a folder for the second daemon")?;
    let socket = folder.join("cofferdam.sock");
    let config = format!(
        "socket = \"{}\"\nrun_dir = \"{}/run\"\nstate_dir = \"{}/state\"\n",
        socket.display(),
        folder.display(),
        folder.display()
    );
    fs::write(folder.join("config.toml"), config).doing("write the second daemon's configuration")?;
    let script = "mount --bind /dev/null /dev/kvm && exec cofferdam serve --config /run/cofferdam-nokvm/config.toml";
    let log = fs::File::create(folder.join("log")).doing("make the second daemon's log")?;
    let mut second = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .stdout(log.try_clone().doing("share the log")?)
        .stderr(log)
        .spawn()
        .doing("start a second daemon")?;
    let crictl = Crictl::on(&socket);
    let result = daemon::wait_ready(&crictl).and_then(|()| {
        let pod = Pod::new("nokvm");
        crictl.refused(&["runp", "--runtime", "vm", &pod.file()?], &["code = FailedPrecondition", "/dev/kvm"])?;
        ensure!(crictl.run(&["pods", "-q"])?.is_empty(), "a refused pod is listed");
        let left: Vec<_> = fs::read_dir(folder.join("run/pods")).map(|d| d.flatten().collect()).unwrap_or_default();
        ensure!(left.is_empty(), "a refused pod left {left:?}");
        Ok(())
    });
    let _ = second.kill();
    let _ = second.wait();
    result?;
    fs::remove_dir_all(folder).doing("remove the second daemon's folder")
}

fn host_namespaces() -> Outcome {
    let pod = Pod::new("hostnet")
        .with("linux", serde_json::json!({"security_context": {"namespace_options": {"network": 2}}}));
    Crictl::default().refused(&["runp", "--runtime", "vm", &pod.file()?], &["code = InvalidArgument", "host"])
}
