//! The node's own credentials: a `config.json` of Docker, and the credential helpers that it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::credentials::{Auth, Secret, canonical_host, decode_pair};
use super::manifest::printable;
use crate::reference::DOCKER_HUB;

const MAX_FILE: u64 = 4 << 20;
/// What a helper may print, bytes.
const MAX_OUTPUT: u64 = 64 << 10;
const HELPER_TIME: Duration = Duration::from_secs(30);
/// How Docker names its hub to helpers.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
/// Variables that helpers see.
const ENVIRONMENT: [&str; 8] =
    ["HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "LANG"];
const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the node's credentials are; read anew whenever a registry wants some.
#[derive(Debug, Clone)]
pub(crate) struct NodeLogin {
    file: PathBuf,
    /// Folders of helpers, as `PATH` lists them.
    programs: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: Option<BTreeMap<String, Entry>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl NodeLogin {
    pub(crate) fn new(file: PathBuf) -> Self {
        Self { file, programs: PROGRAMS.into() }
    }

    /// The credentials for a repository of a host: of its own helper, of the common one, or of
    /// `auths`. What cannot be read is said in the log, since the registry may not need any.
    pub(crate) async fn find(&self, host: &str, repository: &str) -> Option<Auth> {
        match self.look(&canonical_host(host), repository).await {
            Ok(found) => found,
            Err(reason) => {
                tracing::warn!(registry = host, file = %self.file.display(), reason, "node's credentials left out");
                None
            }
        }
    }

    async fn look(&self, host: &str, repository: &str) -> Result<Option<Auth>, String> {
        let Some(text) = read(&self.file).await? else {
            return Ok(None);
        };
        let file: File = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        let helpers = file.cred_helpers.unwrap_or_default();
        let own = nearest(helpers.iter(), host, repository);
        let server = if host == DOCKER_HUB { HUB_SERVER } else { host };
        if let Some((server, helper)) = own {
            return self.ask(helper, server).await;
        }
        if let Some(store) = file.creds_store.filter(|store| !store.is_empty())
            && let Some(found) = self.ask(&store, server).await?
        {
            return Ok(Some(found));
        }
        let auths = file.auths.unwrap_or_default();
        Ok(nearest(auths.iter(), host, repository).and_then(|(_, entry)| entry.credentials()))
    }

    /// Runs `docker-credential-NAME get`. `None` when it has nothing for the server.
    async fn ask(&self, name: &str, server: &str) -> Result<Option<Auth>, String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            return Err(format!("{:?} is no name of a credential helper", printable(name)));
        }
        let program = format!("docker-credential-{name}");
        let work = self.run(&program, server);
        let (success, output) = match tokio::time::timeout(HELPER_TIME, work).await {
            Ok(result) => result.map_err(|e| format!("{program}: {e}"))?,
            Err(_) => return Err(format!("{program}: no answer within {} s", HELPER_TIME.as_secs())),
        };
        if !success {
            // Helpers say on standard output why, and what they say for this has one form.
            let words = String::from_utf8_lossy(&output);
            return match words.contains("credentials not found") {
                true => Ok(None),
                false => Err(format!("{program} failed: {}", printable(words.trim()))),
            };
        }
        let answer: Answer =
            serde_json::from_slice(&output).map_err(|_| format!("{program}: its answer is not that of a helper"))?;
        Ok(match (answer.username.as_str(), answer.secret) {
            (_, secret) if secret.is_empty() => None,
            ("<token>", secret) => Some(Secret::Identity(secret).into()),
            (username, secret) => Some(Auth::basic(username, &secret)),
        })
    }

    async fn run(&self, program: &str, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
        let folder = self.programs.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.exists());
        let path = folder.ok_or_else(|| std::io::Error::other(format!("it is in none of {}", self.programs)))?;
        let mut child = Command::new(path)
            .arg("get")
            .env_clear()
            .envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .env("PATH", &self.programs)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // A helper that does not read is known by what it prints.
            let _ = input.write_all(server.as_bytes()).await;
        }
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_OUTPUT + 1).read_to_end(&mut output).await?;
        }
        if output.len() as u64 > MAX_OUTPUT {
            return Err(std::io::Error::other(format!("it prints more than {MAX_OUTPUT} bytes")));
        }
        Ok((child.wait().await?.success(), output))
    }
}

/// `None` when there is no file.
async fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).await.map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("it is longer than {MAX_FILE} bytes"));
    }
    Ok(Some(bytes))
}

/// The entry whose key is this host, or the longest part of `host/repository`. Keys are hosts,
/// hosts with a path, or URLs.
fn nearest<'a, T>(
    entries: impl Iterator<Item = (&'a String, &'a T)>,
    host: &str,
    repository: &str,
) -> Option<(&'a str, &'a T)> {
    let length = |key: &str| -> Option<usize> {
        if canonical_host(key) != host {
            return None;
        }
        let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
        let path = rest.split_once('/').map_or("", |(_, path)| path).trim_matches('/');
        // What Docker writes behind hosts is a version and no repository.
        if matches!(path, "" | "v1" | "v2") {
            return Some(0);
        }
        let below = repository.strip_prefix(path)?;
        (below.is_empty() || below.starts_with('/')).then_some(path.len())
    };
    let known = entries.filter_map(|(key, value)| Some((length(key)?, key.as_str(), value)));
    known.max_by_key(|(length, ..)| *length).map(|(_, key, value)| (key, value))
}

impl Entry {
    fn credentials(&self) -> Option<Auth> {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let own = Auth::from_cri(
            &text(&self.username),
            &text(&self.password),
            "",
            &text(&self.identitytoken),
            &text(&self.registrytoken),
        );
        own.or_else(|| decode_pair(self.auth.as_deref()?))
    }
}

#[cfg(test)]
mod tests;
