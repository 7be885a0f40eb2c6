//! The AppArmor profile that a container asks for.

use cofferdam_proto::cri::security_profile::ProfileType;
use cofferdam_proto::cri::{LinuxContainerSecurityContext, SecurityProfile};
use cofferdam_sandbox::Kind;

use super::seccomp;
use crate::apparmor::{DEFAULT, Kernel};
use crate::error::CriError;

/// What profile names begin with in the deprecated string, and sometimes in the field.
const LOCALHOST: &str = "localhost/";
/// Longest name of a profile.
const MAX_NAME: usize = 512;

/// The name of the profile that the container's programs get; empty: none. Blocks.
///
/// What is asked for by name is a promise, so it is refused where it cannot be kept. A container that asks for nothing gets the runtime's
/// default where there is one; so does one that asks for the default on a kernel without AppArmor, which Kubernetes expects to pass.
pub(crate) fn profile(
    kind: Kind,
    context: &LinuxContainerSecurityContext,
    kernel: &Kernel,
) -> Result<String, CriError> {
    if context.privileged {
        return Ok(String::new());
    }
    let asked = asked(context)?;
    asked.as_ref().map_or(Ok(()), |profile| seccomp::no_pulled("AppArmor", profile))?;
    let wanted = asked.as_ref().map(|p| ProfileType::try_from(p.profile_type)).transpose();
    let wanted = wanted.map_err(|e| CriError::invalid(format!("unknown AppArmor profile type: {e}")))?;
    match wanted {
        Some(ProfileType::Localhost) => {
            let name = asked.map(|p| p.localhost_ref).unwrap_or_default();
            localhost(kind, name.strip_prefix(LOCALHOST).unwrap_or(&name), kernel)
        }
        Some(ProfileType::Unconfined) => Ok(String::new()),
        _ if kind == Kind::Vm || !kernel.enabled() => Ok(String::new()),
        explicit => match kernel.holds(DEFAULT) {
            Ok(true) => Ok(DEFAULT.to_owned()),
            _ if explicit.is_none() => Ok(String::new()),
            Ok(false) => Err(CriError::State(format!(
                "the AppArmor profile {DEFAULT} is not loaded, so there is no runtime default: is apparmor_parser installed? the daemon's log says more"
            ))),
            Err(e) => Err(unreadable(e)),
        },
    }
}

fn localhost(kind: Kind, name: &str, kernel: &Kernel) -> Result<String, CriError> {
    let shown = crate::node::shorten(name);
    if kind == Kind::Vm {
        return Err(CriError::invalid(format!(
            "AppArmor profile {shown:?}: the guest has no AppArmor: use the runtime handler \"host\""
        )));
    }
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(CriError::invalid(format!("{shown:?} is not the name of an AppArmor profile")));
    }
    if !kernel.enabled() {
        return Err(CriError::invalid(format!("AppArmor profile {shown:?}: the node's kernel has AppArmor off")));
    }
    match kernel.holds(name) {
        Ok(true) => Ok(name.to_owned()),
        Ok(false) => Err(CriError::invalid(format!(
            "AppArmor profile {shown:?} is not loaded on this node: load it with apparmor_parser first"
        ))),
        Err(e) => Err(unreadable(e)),
    }
}

fn unreadable(error: std::io::Error) -> CriError {
    CriError::internal(
        "read the kernel's list of AppArmor profiles (is securityfs mounted on /sys/kernel/security?)",
        error,
    )
}

/// The field wins over the deprecated string, which may be absent too.
#[allow(deprecated, reason = "older kubelets send the string")]
fn asked(context: &LinuxContainerSecurityContext) -> Result<Option<SecurityProfile>, CriError> {
    if context.apparmor.is_some() {
        return Ok(context.apparmor.clone());
    }
    let profile = |kind: ProfileType, name: &str| SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.into(),
        ..Default::default()
    };
    match context.apparmor_profile.as_str() {
        "" => Ok(None),
        "runtime/default" => Ok(Some(profile(ProfileType::RuntimeDefault, ""))),
        "unconfined" => Ok(Some(profile(ProfileType::Unconfined, ""))),
        other => match other.strip_prefix(LOCALHOST) {
            Some(name) => Ok(Some(profile(ProfileType::Localhost, name))),
            None => Err(CriError::invalid(format!(
                "AppArmor profile {:?} is not runtime/default, unconfined or localhost/NAME",
                crate::node::shorten(other)
            ))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "mine (enforce)\ncofferdam-default (enforce)\n";

    fn field(kind: ProfileType, name: &str) -> LinuxContainerSecurityContext {
        let apparmor =
            Some(SecurityProfile { profile_type: kind.into(), localhost_ref: name.into(), ..Default::default() });
        LinuxContainerSecurityContext { apparmor, ..Default::default() }
    }

    #[allow(deprecated, reason = "older kubelets send the string")]
    fn string(text: &str) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext { apparmor_profile: text.into(), ..Default::default() }
    }

    #[test]
    #[allow(deprecated, reason = "older kubelets send the string")]
    fn every_way_to_ask_on_every_node() {
        use ProfileType::{Localhost, Oci, RuntimeDefault, Unconfined};
        let both =
            LinuxContainerSecurityContext { apparmor_profile: "localhost/none".into(), ..field(Localhost, "mine") };
        let privileged = LinuxContainerSecurityContext { privileged: true, ..field(Localhost, "none") };
        let own = Some(DEFAULT);
        let (plain, refused) = (Some(""), None);
        // kernel with our profile, kernel without it, kernel without AppArmor, microVM
        for (context, expected) in [
            (LinuxContainerSecurityContext::default(), [own, plain, plain, plain]),
            (field(RuntimeDefault, ""), [own, refused, plain, plain]),
            (field(Unconfined, ""), [plain, plain, plain, plain]),
            (field(Localhost, "mine"), [Some("mine"), Some("mine"), refused, refused]),
            (field(Localhost, "localhost/mine"), [Some("mine"), Some("mine"), refused, refused]),
            (field(Localhost, "none"), [refused; 4]),
            (field(Localhost, ""), [refused; 4]),
            (field(Localhost, "mine\nexec other"), [refused; 4]),
            (string("runtime/default"), [own, refused, plain, plain]),
            (string("unconfined"), [plain, plain, plain, plain]),
            (string("localhost/mine"), [Some("mine"), Some("mine"), refused, refused]),
            (string("localhost/none"), [refused; 4]),
            (string("mine"), [refused; 4]),
            (field(Oci, ""), [refused; 4]),
            (both, [Some("mine"), Some("mine"), refused, refused]),
            (privileged, [plain, plain, plain, plain]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let nodes = [
                (Kind::Host, "Y\n", LISTED),
                (Kind::Host, "Y\n", "mine (enforce)\n"),
                (Kind::Host, "N\n", ""),
                (Kind::Vm, "Y\n", LISTED),
            ];
            for ((kind, enabled, listed), expected) in nodes.into_iter().zip(expected) {
                let got = profile(kind, &context, &Kernel::fake(dir.path(), enabled, listed));
                assert_eq!(got.as_deref().ok(), expected, "{context:?} on {kind:?} {enabled:?} {listed:?}: {got:?}");
            }
        }
        let mut odd = field(Localhost, "");
        odd.apparmor.as_mut().unwrap().profile_type = 9;
        assert!(profile(Kind::Host, &odd, &Kernel::default()).is_err());
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Kernel::fake(dir.path(), "Y\n", "");
        let text = |kind, context| profile(kind, context, &kernel).unwrap_err().to_string();
        let none = field(ProfileType::Localhost, "none");
        assert!(text(Kind::Host, &none).contains("\"none\" is not loaded on this node"));
        assert!(text(Kind::Vm, &none).contains("the guest has no AppArmor: use the runtime handler \"host\""));
        assert!(text(Kind::Host, &field(ProfileType::RuntimeDefault, "")).contains("apparmor_parser"));
    }
}
