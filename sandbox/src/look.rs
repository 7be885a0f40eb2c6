//! What an operator asks of a guest from outside the daemon.

use crate::connect;
use crate::dirs::{self, Dirs};
use crate::error::{SandboxError, blocking};
use crate::spec::{Config, Kind, PodSpec, VmSize};

/// The memory and vCPUs that the guest of the running pod `id` has now; nothing for a host pod.
///
/// # Errors
/// When no such pod runs, or its monitor does not answer.
pub async fn guest_size(config: &Config, id: &str) -> Result<Option<VmSize>, SandboxError> {
    let dirs = Dirs::of(config, id)?;
    blocking(move || {
        let Some(started) = spec(&dirs)?.filter(|spec| spec.kind == Kind::Vm).map(|spec| spec.vm) else {
            return Ok(None);
        };
        let now = connect::status(&dirs)?;
        Ok(Some(VmSize {
            vcpus: now.vcpus.map_or(started.vcpus, |vcpus| vcpus.made),
            memory_mib: started.memory_mib.saturating_add(now.memory.map_or(0, |memory| memory.plugged_mib)),
        }))
    })
    .await
}

/// The last 32 KiB that the kernel of the guest of pod `id` has said on its serial console.
///
/// # Errors
/// When the pod is none that runs in a microVM, or its monitor does not answer.
pub async fn console(config: &Config, id: &str) -> Result<String, SandboxError> {
    let dirs = Dirs::of(config, id)?;
    blocking(move || match spec(&dirs)? {
        Some(spec) if spec.kind == Kind::Vm => connect::console(&dirs),
        Some(_) => Err(SandboxError::Invalid("a host pod has no guest, and so no console".into())),
        None => Err(SandboxError::Invalid(format!("no pod {} runs", shown(&dirs)))),
    })
    .await
}

fn shown(dirs: &Dirs) -> String {
    dirs.run.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn spec(dirs: &Dirs) -> Result<Option<PodSpec>, SandboxError> {
    dirs::read(&dirs.spec())
}
