//! A registry over TLS whose certificate is signed by an authority of its own.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::Test;
use crate::crictl::{self, Container, Crictl, Pod, wait_for};
use crate::daemon;
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("registry_with_an_authority_of_its_own", private_authority)];

/// Not on the loopback network, whose registries need no certificate that is trusted (RFC 5737).
const HOST: &str = "192.0.2.5";
const ADDRESS: &str = "192.0.2.5:5002";
const ON_LOOPBACK: &str = "127.0.0.1:5002";
const FOLDER: &str = "/run/cofferdam-e2e/tls";

/// The node's registry once more, over TLS.
struct Registry {
    folder: PathBuf,
    process: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
        let _ = address("del");
    }
}

/// Gives the node the address, or takes it away.
fn address(action: &str) -> Outcome {
    let mut command = Command::new("ip");
    command.args(["address", action, &format!("{HOST}/32"), "dev", "lo"]);
    let done = crictl::run(command, "ip address")?;
    ensure!(done.code == 0, "ip address {action} {HOST}: {}", done.stderr);
    Ok(())
}

fn openssl(folder: &Path, args: &[&str]) -> Outcome {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(args);
    let done = crictl::run(command, "openssl")?;
    ensure!(done.code == 0, "openssl {}: {}", args.join(" "), done.stderr);
    Ok(())
}

/// Makes an authority in the folder: `NAME.pem` and its key.
fn authority(folder: &Path, name: &str) -> Outcome {
    let (key, pem, subject) =
        (format!("{name}.key"), format!("{name}.pem"), format!("/CN=authority {name} of the test"));
    let mut args = vec!["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    args.extend(["-keyout", &key, "-out", &pem, "-subj", &subject]);
    args.extend(["-addext", "keyUsage=critical,keyCertSign"]);
    openssl(folder, &args)
}

impl Registry {
    fn start() -> Outcome<Self> {
        let folder = PathBuf::from(FOLDER);
        fs::create_dir_all(&folder).doing(&format!("make {FOLDER}"))?;
        authority(&folder, "right")?;
        authority(&folder, "wrong")?;
        let names = format!("subjectAltName=IP:{HOST}");
        let mut args =
            vec!["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        args.extend(["-CA", "right.pem", "-CAkey", "right.key", "-keyout", "server.key", "-out", "server.pem"]);
        args.extend(["-subj", "/CN=registry of the test", "-addext", &names]);
        args.extend(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "extendedKeyUsage=serverAuth"]);
        openssl(&folder, &args)?;
        address("replace")?;
        let process = Command::new("docker-registry")
            .args(["serve", "/etc/docker/registry/config.yml"])
            .env("REGISTRY_HTTP_ADDR", ":5002")
            .env("REGISTRY_HTTP_TLS_CERTIFICATE", folder.join("server.pem"))
            .env("REGISTRY_HTTP_TLS_KEY", folder.join("server.key"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .doing("start docker-registry")?;
        let registry = Self { folder, process };
        wait_for("the registry to listen", || Ok(TcpStream::connect(ADDRESS).is_ok()))?;
        Ok(registry)
    }
}

fn trusting(authority: &str) -> String {
    format!("[registries.\"{ADDRESS}\"]\nca_files = [\"{FOLDER}/{authority}.pem\"]\n")
}

fn private_authority() -> Outcome {
    let _registry = Registry::start()?;
    let crictl = Crictl::default();
    let image = format!("{ADDRESS}/cofferdam/docker-v2:1");
    let refused = || crictl.refused(&["pull", &image], &["RegistryUnavailable", ADDRESS, "certificate", "ca_files"]);
    refused()?;
    let on_loopback = format!("{ON_LOOPBACK}/cofferdam/docker-v2:1");
    crictl.run(&["pull", &on_loopback])?;
    crictl.run(&["rmi", &on_loopback])?;
    daemon::with_settings(&trusting("wrong"), refused)?;
    daemon::with_settings(&trusting("right"), || {
        crictl.run(&["pull", &image])?;
        let pod = Pod::new("tls");
        let id = crictl.run_pod("host", &pod)?;
        let container = Container::new("tls", &image, &["sh", "-c", "cat /kind; echo whole"]);
        let container = crictl.run_container(&id, &pod, &container)?;
        let log = crictl.wait_log(&container, "whole")?;
        ensure!(log.contains("docker-v2"), "the image that came over TLS says {log}");
        crictl.remove_pod(&id)?;
        crictl.run(&["rmi", &image]).map(drop)
    })?;
    // Who is not trusted any more is asked no more.
    refused()
}
