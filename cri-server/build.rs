//! Tells the program of which commit it is, for `cofferdam --version`.
//!
//! `COFFERDAM_COMMIT` says it where there is no repository, as in a build from a source archive.

use std::process::Command;

#[expect(clippy::disallowed_methods, reason = "a build script has no asynchronous workers")]
fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn main() {
    println!("cargo:rerun-if-env-changed=COFFERDAM_COMMIT");
    // The files that change with a commit; in a work tree they are in the repository's own folder.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", name]) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let given = std::env::var("COFFERDAM_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(|| git(&["rev-parse", "--short=12", "HEAD"]));
    println!("cargo:rustc-env=COFFERDAM_COMMIT={}", commit.unwrap_or_else(|| "no commit".into()));
}
