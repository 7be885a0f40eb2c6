//! `cofferdam debug bundle`: one archive for a bug report.
//!
//! It holds what this daemon and the node say of themselves. Left out are what pods are given and
//! what they say: environments, annotations, commands, logs and files. Passwords in addresses are
//! cut from every part.

#![expect(clippy::disallowed_methods, reason = "this subcommand has no asynchronous workers")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{Outcome, print};

/// Lines of the daemon's journal.
const JOURNAL_LINES: &str = "5000";
/// Most of one part, bytes: the end of it is kept.
const MOST: usize = 8 << 20;
/// What this program says of itself, by the name of the part.
const OWN: [(&str, &[&str]); 5] = [
    ("version.txt", &["--version"]),
    ("config.toml", &["config"]),
    ("check.txt", &["check"]),
    ("pods.json", &["pods", "-o", "json"]),
    ("images.json", &["images", "-o", "json"]),
];
/// What the node says.
const NODE: [(&str, &[&str]); 7] = [
    ("journal.txt", &["journalctl", "-u", "cofferdam", "-o", "short-precise", "--no-pager", "-n", JOURNAL_LINES]),
    ("unit.txt", &["systemctl", "status", "--no-pager", "--lines=0", "cofferdam"]),
    ("kernel-log.txt", &["dmesg", "--level=emerg,alert,crit,err,warn"]),
    ("processes.txt", &["ps", "-eo", "pid,ppid,stat,etimes,rss,cgroup:120,comm"]),
    ("disks.txt", &["df", "-h"]),
    ("inodes.txt", &["df", "-i"]),
    ("cni.txt", &["ls", "-l", "/etc/cni/net.d", "/opt/cni/bin", "/usr/lib/cni"]),
];
/// Files of the node, by their paths.
const FILES: [&str; 6] =
    ["/proc/version", "/proc/cmdline", "/proc/meminfo", "/proc/cpuinfo", "/proc/self/mountinfo", "/etc/os-release"];

/// Writes the archive to `out`, or to a name with the time in the working directory.
pub(crate) fn run(config: Option<&Path>, out: Option<PathBuf>) -> Outcome {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("cofferdam-debug-{seconds}");
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let told = |error: io::Error| format!("cannot write {}: {error}", out.display());
    // Only its owner may read it, and nothing is written over.
    let file = File::options().write(true).create_new(true).mode(0o600).open(&out).map_err(told)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let whole = parts(config).into_iter().try_for_each(|(part, text)| {
        let text = without_passwords(&text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        archive.append_data(&mut header, format!("{name}/{part}"), text.as_bytes())
    });
    let written = whole.and_then(|()| archive.into_inner()?.finish()?.flush());
    if let Err(error) = written {
        let _ = fs::remove_file(&out);
        return Err(told(error).into());
    }
    print(&format!("{}\n", out.display()))
}

fn parts(config: Option<&Path>) -> Vec<(String, String)> {
    let mut parts = Vec::new();
    for (part, words) in OWN {
        let mut command = Command::new("/proc/self/exe");
        command.args(words);
        if let Some(path) = config.filter(|_| part != "version.txt") {
            command.arg("--config").arg(path);
        }
        parts.push((part.to_owned(), said(command)));
    }
    for (part, words) in NODE {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        parts.push((part.to_owned(), said(command)));
    }
    for path in FILES {
        let name = path.trim_start_matches('/').replace('/', "-");
        let text = fs::read(path).map_or_else(|error| format!("cannot read {path}: {error}\n"), last_of);
        parts.push((format!("{name}.txt"), text));
    }
    parts
}

/// What a command prints, and how it ended if not well.
fn said(mut command: Command) -> String {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => {
            let mut text = last_of(output.stdout);
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            if !output.status.success() {
                text.push_str(&format!("({})\n", output.status));
            }
            text
        }
        Err(error) => format!("cannot run {}: {error}\n", command.get_program().to_string_lossy()),
    }
}

fn last_of(bytes: Vec<u8>) -> String {
    let from = bytes.len().saturating_sub(MOST);
    String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
}

/// `scheme://user:password@host` loses the user and the password.
fn without_passwords(text: &str) -> String {
    let mut rest = text;
    let mut clean = String::with_capacity(text.len());
    while let Some((before, after)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        let end = after.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'')).unwrap_or(after.len());
        let (authority, other) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => clean.push_str(&format!("(left out)@{host}")),
            None => clean.push_str(authority),
        }
        rest = other;
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_addresses_are_left_out() {
        let text = "a http://me:secret@host:5000/v2 \"https://t@x\" and https://plain/a@b";
        let clean = "a http://(left out)@host:5000/v2 \"https://(left out)@x\" and https://plain/a@b";
        assert_eq!(without_passwords(text), clean);
        assert_eq!(without_passwords("://"), "://");
    }

    #[test]
    fn nothing_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("there");
        fs::write(&out, "mine").unwrap();
        assert!(run(None, Some(out.clone())).is_err());
        assert_eq!(fs::read(&out).unwrap(), b"mine");
    }
}
