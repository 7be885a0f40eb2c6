//! Images' unpacked trees beside containerd's, entry by entry. What the images are: e2e/node/trees.py.

mod look;

use std::ffi::CString;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::look::Tree;
use super::Test;
use crate::bench::PEER_SOCKET;
use crate::crictl::{Crictl, wait_for};
use crate::daemon::systemctl;
use crate::failure::{Doing, Failure, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("unpacked_trees_are_containerds", unpacked)];

const REGISTRY: &str = "127.0.0.1:5000";
const REPOSITORIES: &str = "cofferdam/trees/";
const STORE: &str = "/var/lib/cofferdam/images";
const FEWEST: usize = 20;

fn unpacked() -> Outcome {
    systemctl(&["start", "containerd.service"])?;
    let compared =
        wait_for("containerd to listen", || Ok(Path::new(PEER_SOCKET).exists())).and_then(|()| compare_all());
    systemctl(&["stop", "containerd.service"])?;
    compared
}

fn compare_all() -> Outcome {
    let catalog = document("_catalog?n=1000")?;
    let names = catalog["repositories"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = names.iter().filter_map(Value::as_str).filter(|n| n.starts_with(REPOSITORIES)).collect();
    ensure!(names.len() >= FEWEST, "the registry has {} images whose trees are compared", names.len());
    let mut different = Vec::new();
    for name in &names {
        let found = compare(name).map_err(|f| Failure(format!("{name}: {f}")))?;
        different.extend(found.into_iter().map(|line| format!("\n    {name}: {line}")));
    }
    // containerd calls the snapshot behind a mount by the mount's place.
    let places: Vec<_> = names.iter().map(|name| their_place(name)).collect();
    done(ctr().args(["snapshots", "rm"]).args(places))?;
    ensure!(different.is_empty(), "{} differences:{}", different.len(), different.concat());
    Ok(())
}

/// How the two trees of an image differ.
fn compare(repository: &str) -> Outcome<Vec<String>> {
    let image = format!("registry.k8s.io/{repository}:1");
    let (ours, theirs) = (Crictl::default(), Crictl::on(Path::new(PEER_SOCKET)));
    ours.run(&["pull", &image])?;
    theirs.run(&["pull", &image])?;
    // Overlayfs wants two lower directories.
    let lower = layers(repository)?.into_iter().chain([Path::new(STORE).join("empty/fs")]);
    let lower: Vec<String> = lower.map(|dir| dir.display().to_string()).collect();
    let options = CString::new(format!("userxattr,lowerdir={}", lower.join(":"))).doing("name the layers")?;
    let our_tree = mounted(Path::new("/run/trees-ours"), |at| {
        // By mount(2): mount(8) takes options of 256 bytes at most.
        rustix::mount::mount("trees", at, "overlay", MountFlags::RDONLY, Some(&*options)).doing("mount an overlay")
    })?;
    let their_tree = mounted(&their_place(repository), |at| done(ctr().args(["images", "mount", &image]).arg(at)))?;
    ours.run(&["rmi", &image])?;
    theirs.run(&["rmi", &image])?;
    Ok(our_tree.differences(&their_tree))
}

fn their_place(repository: &str) -> PathBuf {
    Path::new("/run").join(repository.replace('/', "-"))
}

fn ctr() -> Command {
    let mut command = Command::new("/opt/peer/bin/ctr");
    command.args(["-n", "k8s.io"]);
    command
}

/// The tree that `mount` mounts at a place.
fn mounted(at: &Path, mount: impl FnOnce(&Path) -> Outcome) -> Outcome<Tree> {
    fs::create_dir_all(at).doing("make a folder to mount on")?;
    mount(at)?;
    let tree = Tree::of(at);
    rustix::mount::unmount(at, UnmountFlags::empty()).doing("unmount a tree")?;
    fs::remove_dir(at).doing("remove the folder of a mount")?;
    tree
}

/// The store's directories of an image, topmost first, by the chain ids of its config (OCI image
/// specification, config.md).
fn layers(repository: &str) -> Outcome<Vec<PathBuf>> {
    let manifest = document(&format!("{repository}/manifests/1"))?;
    let digest = manifest["config"]["digest"].as_str().ok_or("the manifest names no config")?;
    let config = document(&format!("{repository}/blobs/{digest}"))?;
    let mut chain = String::new();
    let mut dirs = Vec::new();
    for diff_id in config["rootfs"]["diff_ids"].as_array().ok_or("the config has no layers")? {
        let diff_id = diff_id.as_str().ok_or("a layer's digest is no text")?;
        chain = if chain.is_empty() { diff_id.into() } else { digest_of(&format!("{chain} {diff_id}")) };
        dirs.insert(0, Path::new(STORE).join("layers").join(chain.trim_start_matches("sha256:")).join("fs"));
    }
    Ok(dirs)
}

fn digest_of(text: &str) -> String {
    let hex: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// What the registry answers.
fn document(path: &str) -> Outcome<Value> {
    let what = format!("get /v2/{path}");
    let mut stream = TcpStream::connect(REGISTRY).doing(&what)?;
    let accept = "application/vnd.oci.image.manifest.v1+json, application/json";
    write!(stream, "GET /v2/{path} HTTP/1.0\r\nHost: {REGISTRY}\r\nAccept: {accept}\r\n\r\n").doing(&what)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).doing(&what)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| Failure(format!("cannot {what}: {answer}")))?;
    serde_json::from_str(body).doing(&what)
}

fn done(command: &mut Command) -> Outcome {
    let output = command.output().doing("run a command")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
