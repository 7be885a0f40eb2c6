//! The kubelet's configuration: where it is, and what of it has to change for another runtime.
//!
//! The kubelet takes its endpoint from, in this order: the flag `--container-runtime-endpoint`
//! (kubeadm wrote it to `kubeadm-flags.env` until 1.34), a drop-in of `--config-dir`, the file of
//! `--config`. The change goes where the kubelet looks first.

pub(crate) mod arguments;
pub(crate) mod flags;
pub(crate) mod yaml;

use std::io::ErrorKind;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result, refuse};
use crate::files;
use crate::paths::Paths;
use crate::systemd::Systemd;
use arguments::Arguments;

/// The gate with which the kubelet asks the runtime for statistics, instead of looking for cgroups
/// that it knows.
pub(crate) const GATE: &str = "PodAndContainerStatsFromCRI";

/// A file before and after the change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Edit {
    /// Which, as the kubelet names it.
    pub(crate) path: PathBuf,
    /// Its text; none if there was no such file.
    pub(crate) before: Option<String>,
    /// Its new text.
    pub(crate) after: String,
}

/// The kubelet of this node.
#[derive(Debug, Clone)]
pub(crate) struct Kubelet {
    /// What it was started with.
    pub(crate) arguments: Arguments,
    /// Files of its unit that may hold arguments.
    pub(crate) environment: Vec<PathBuf>,
}

impl Kubelet {
    /// Looks at the kubelet that runs as `unit`.
    ///
    /// # Errors
    /// When there is none: a k3s or RKE2 node has its kubelet in another program, and cannot be
    /// switched.
    pub(crate) async fn find(systemd: &Systemd, unit: &str) -> Result<Self> {
        let pid = systemd.main_pid(unit).await?;
        if pid == 0 {
            return refuse(format!(
                "no kubelet runs as {unit} on this node. Nodes of k3s, RKE2 and the like, whose kubelet is in another program, \
                 cannot be switched; start the kubelet first if it is only stopped"
            ));
        }
        let path = format!("/proc/{pid}/cmdline");
        let words = std::fs::read(&path).doing(|| format!("read the kubelet's arguments in {path}"))?;
        let words: Vec<String> = words
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let environment = systemd.environment_files(unit).await?.into_iter().map(PathBuf::from).collect();
        Ok(Self { arguments: Arguments::parse(&words), environment })
    }

    /// The endpoint in effect, as far as the kubelet has been told one.
    pub(crate) fn endpoint(&self, paths: &Paths) -> Result<String> {
        if let Some(endpoint) = &self.arguments.endpoint {
            return Ok(endpoint.clone());
        }
        let mut found = yaml::endpoint(&self.config_text(paths)?.1)?;
        for text in self.drop_ins(paths)? {
            found = yaml::endpoint(&text)?.or(found);
        }
        Ok(found.unwrap_or_else(|| "unix:///run/containerd/containerd.sock".into()))
    }

    /// The drop-ins of `--config-dir`, in the order in which the kubelet reads them: a later one
    /// counts.
    fn drop_ins(&self, paths: &Paths) -> Result<Vec<String>> {
        let Some(folder) = &self.arguments.config_dir else { return Ok(Vec::new()) };
        let folder = paths.host(folder);
        let entries = match std::fs::read_dir(&folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.doing(|| format!("read the kubelet's drop-ins in {}", folder.display()))?,
        };
        let mut names: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        names.retain(|path| path.extension().is_some_and(|ending| ending == "conf"));
        names.sort();
        Ok(names.iter().map(|path| files::read(path)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// The kubeconfig with which it speaks to the API server.
    pub(crate) fn kubeconfig(&self) -> Result<String> {
        match &self.arguments.kubeconfig {
            Some(path) => Ok(path.clone()),
            None => refuse("the kubelet has no --kubeconfig: it stands alone, and its node cannot be drained"),
        }
    }

    /// What has to change for the kubelet to use `endpoint`, with the gate or without a change of
    /// it.
    ///
    /// # Errors
    /// When the endpoint is in a place where it cannot be changed; the message names the place.
    pub(crate) fn edits(&self, paths: &Paths, endpoint: &str, gate: bool) -> Result<Vec<Edit>> {
        let mut edits = Vec::new();
        if self.arguments.gates.iter().any(|word| gate && word.strip_prefix(GATE) == Some("=false")) {
            return refuse(format!("the kubelet's --feature-gates has {GATE}=false; remove it there first"));
        }
        let flag = self.arguments.endpoint.is_some();
        if flag {
            edits.push(self.flag_edit(paths, endpoint)?);
        }
        if flag && !gate {
            return Ok(edits);
        }
        let wanted = (!flag).then_some(endpoint);
        if let Some(folder) = &self.arguments.config_dir {
            let path = PathBuf::from(folder).join("zz-cofferdam.conf");
            let before = files::read(&paths.host(&path.to_string_lossy()))?;
            edits.push(Edit { path, before, after: yaml::drop_in(wanted, gate) });
            return Ok(edits);
        }
        let (path, before) = self.config_text(paths)?;
        let after = yaml::set(&before, wanted, gate).doing(|| format!("change {}", path.display()))?;
        edits.push(Edit { path, before: Some(before), after });
        Ok(edits)
    }

    fn config_text(&self, paths: &Paths) -> Result<(PathBuf, String)> {
        let Some(config) = &self.arguments.config else {
            return refuse("the kubelet has no --config: give it a configuration file first");
        };
        match files::read(&paths.host(config))? {
            Some(text) => Ok((config.into(), text)),
            None => refuse(format!("the kubelet's configuration {config} is not there")),
        }
    }

    fn flag_edit(&self, paths: &Paths, endpoint: &str) -> Result<Edit> {
        for path in &self.environment {
            let Some(before) = files::read(&paths.host(&path.to_string_lossy()))? else { continue };
            if let Some(after) = flags::set(&before, endpoint) {
                return Ok(Edit { path: path.clone(), before: Some(before), after });
            }
        }
        refuse(
            "the kubelet's unit has --container-runtime-endpoint in its command line, and not in one of its environment \
             files, where it could be changed; move it to the kubelet's configuration file",
        )
    }
}

#[cfg(test)]
mod tests;
