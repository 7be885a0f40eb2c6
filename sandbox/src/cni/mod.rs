//! Runs CNI plugins (CNI specification 1.1, sections 2 to 5).
//!
//! What is needed to take a pod off its network again is an [`Attachment`]: written before the first plugin runs and after each, so that a
//! half-done ADD can be undone. It holds the configuration as it was, since the file may change meanwhile.

mod capabilities;
pub(crate) mod config;
mod first;
mod plugin;
pub(crate) mod result;
pub(crate) mod strays;

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::field::Empty;
use tracing::info_span;

pub(crate) use config::NetworkList;
pub(crate) use first::Networks;
pub(crate) use result::status;

use crate::error::SandboxError;
use crate::spec::{CniConfig, NetworkSpec};
use crate::step::{SPANS, step};
use plugin::Call;

/// Name of the pod's interface, in its network namespace and in its guest.
pub(crate) const INTERFACE: &str = "eth0";

/// A pod's place in a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// Container id for the plugins: the pod's.
    pub(crate) container: String,
    /// `CNI_ARGS`.
    args: String,
    /// Values for capabilities that plugins declare.
    capabilities: Map<String, Value>,
    /// The configuration as it was.
    pub(crate) network: NetworkList,
    /// What the last plugin answered so far. Some (firewall) take back nothing without it.
    pub(crate) result: Option<Value>,
    /// Every plugin has answered.
    pub(crate) complete: bool,
}

impl Attachment {
    /// Describes the attachment of `container` before it is made.
    ///
    /// # Errors
    /// When an argument would not fit `CNI_ARGS`.
    pub(crate) fn new(
        network: NetworkList,
        container: &str,
        spec: &NetworkSpec,
        resolv_conf: &str,
        cgroup: &str,
    ) -> Result<Self, SandboxError> {
        let mut args = String::from("IgnoreUnknown=1");
        for (name, value) in &spec.args {
            let whole = |text: &str| !text.is_empty() && !text.contains([';', '=', '\0']);
            if !whole(name) || value.contains([';', '\0']) {
                return Err(SandboxError::Invalid(format!("CNI argument {name:?} cannot be passed to plugins")));
            }
            if name != "IgnoreUnknown" {
                args.push_str(&format!(";{name}={value}"));
            }
        }
        let capabilities = capabilities::of(spec, resolv_conf, cgroup);
        Ok(Self { container: container.into(), args, capabilities, network, result: None, complete: false })
    }

    /// Adds the namespace at `netns` to the network: every plugin in order, each with the result of the one before, which `save` keeps.
    ///
    /// # Errors
    /// Names the network and the plugin that failed. Those before it are not undone: call [`Self::del`].
    pub(crate) async fn add<F: Future<Output = Result<(), SandboxError>>>(
        &mut self,
        config: &CniConfig,
        netns: &Path,
        mut save: impl FnMut(&Self) -> F,
    ) -> Result<(), SandboxError> {
        save(self).await?;
        let plugins = self.network.plugins.len();
        for number in 0..plugins {
            let plugin = &self.network.plugins[number];
            let doing = self.step("add the pod to", plugin);
            let input = self.input(plugin, self.result.as_ref());
            let kind = config::kind(plugin);
            let span = info_span!(target: SPANS, "CNI plugin", otel.status_code = Empty, cni.plugin = kind);
            let output = step(span, self.call(config, plugin, "ADD", Some(netns), &doing, &input)).await?;
            if output.is_none() && self.result.is_none() {
                return Err(SandboxError::step(doing, "the plugin answered nothing"));
            }
            self.result = output.or(self.result.take());
            self.complete = number + 1 == plugins;
            save(self).await?;
        }
        Ok(())
    }

    /// Takes the pod off the network: every plugin in reverse order, also when one fails. Idempotent, as plugins have to be.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) async fn del(&self, config: &CniConfig, netns: Option<&Path>) -> Result<(), SandboxError> {
        let mut outcome = Ok(());
        // CNI 0.3 plugins do not know prevResult on DEL (specification 0.4.0).
        let previous = self.result.as_ref().filter(|_| self.network.at_least(0, 4));
        for plugin in self.network.plugins.iter().rev() {
            let step = self.step("take the pod off", plugin);
            let input = self.input(plugin, previous);
            if let Err(error) = self.call(config, plugin, "DEL", netns, &step, &input).await {
                tracing::debug!(pod = %self.container, error = %error, "plugin failed on DEL");
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    fn step(&self, doing: &str, plugin: &Map<String, Value>) -> String {
        format!("{doing} network {}: plugin {}", self.network.name, config::kind(plugin))
    }

    /// The plugin's configuration as it wants it (specification, "Deriving request configuration").
    fn input(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut input = plugin.clone();
        input.insert("name".into(), self.network.name.clone().into());
        input.insert("cniVersion".into(), self.network.version.clone().into());
        let declared = input.remove("capabilities");
        let wanted = |name: &str| declared.as_ref().and_then(|all| all.get(name)) == Some(&Value::Bool(true));
        let runtime: Map<String, Value> =
            self.capabilities.iter().filter(|(name, _)| wanted(name)).map(|(k, v)| (k.clone(), v.clone())).collect();
        if !runtime.is_empty() {
            input.insert("runtimeConfig".into(), Value::Object(runtime));
        }
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        Value::Object(input)
    }

    async fn call(
        &self,
        config: &CniConfig,
        plugin: &Map<String, Value>,
        command: &str,
        netns: Option<&Path>,
        step: &str,
        input: &Value,
    ) -> Result<Option<Value>, SandboxError> {
        let program =
            config::find(config::kind(plugin), &config.bin_dirs).map_err(|reason| SandboxError::step(step, reason))?;
        let call = Call {
            program: &program,
            command,
            container: &self.container,
            netns,
            args: &self.args,
            path: &config.bin_dirs,
            limit: config.plugin_timeout,
        };
        call.run(step, input).await
    }
}

#[cfg(test)]
mod tests;
