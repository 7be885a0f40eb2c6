//! The seccomp filter that a container asks for.

use std::io::Read;
use std::path::Path;

use cofferdam_proto::agent::Seccomp;
use cofferdam_proto::agent::seccomp::Kind;
use cofferdam_proto::cri::security_profile::ProfileType;
use cofferdam_proto::cri::{LinuxContainerSecurityContext, SecurityProfile};

use crate::error::CriError;

/// Longest profile that is read, bytes.
const MAX_PROFILE: u64 = 1 << 20;

/// The filter of a container. Nothing asked for means no filter: the kubelet asks for one when it wants one. Blocks.
#[allow(deprecated, reason = "older kubelets send the string")]
pub(crate) fn profile(context: &LinuxContainerSecurityContext) -> Result<Seccomp, CriError> {
    let plain = |kind: Kind| Seccomp { kind: kind.into(), profile: Vec::new() };
    if context.privileged {
        return Ok(plain(Kind::Unconfined));
    }
    let asked = match &context.seccomp {
        Some(profile) => profile.clone(),
        None => old_style(&context.seccomp_profile_path)?,
    };
    no_pulled("seccomp", &asked)?;
    match ProfileType::try_from(asked.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(plain(Kind::RuntimeDefault)),
        Ok(ProfileType::Unconfined) => Ok(plain(Kind::Unconfined)),
        Ok(ProfileType::Localhost) => {
            Ok(Seccomp { kind: Kind::Profile.into(), profile: read(Path::new(&asked.localhost_ref))? })
        }
        Ok(ProfileType::Oci) | Err(_) => {
            Err(CriError::invalid(format!("unknown seccomp profile type {}", asked.profile_type)))
        }
    }
}

/// Refuses a profile of a registry, which Kubernetes 1.38 can ask for and Cofferdam does not pull. `what` is the profile's kind.
pub(crate) fn no_pulled(what: &str, asked: &SecurityProfile) -> Result<(), CriError> {
    let named = !asked.oci_ref.is_empty() || asked.base_profile.is_some();
    if named || asked.profile_type == i32::from(ProfileType::Oci) {
        return Err(CriError::invalid(format!("{what} profiles from a registry (type OCI) are not supported")));
    }
    Ok(())
}

/// The deprecated string.
fn old_style(text: &str) -> Result<SecurityProfile, CriError> {
    let (kind, path) = match text {
        "" | "unconfined" => (ProfileType::Unconfined, ""),
        "runtime/default" | "docker/default" => (ProfileType::RuntimeDefault, ""),
        other => match other.strip_prefix("localhost/") {
            Some(path) => (ProfileType::Localhost, path),
            None => {
                return Err(CriError::invalid(format!("unknown seccomp profile {:?}", crate::node::shorten(other))));
            }
        },
    };
    Ok(SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned(), ..Default::default() })
}

#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn read(path: &Path) -> Result<Vec<u8>, CriError> {
    let bad = |why: String| CriError::invalid(format!("seccomp profile {}: {why}", path.display()));
    if !path.is_absolute() {
        return Err(bad("is not an absolute path".into()));
    }
    if !std::fs::metadata(path).map_err(|e| bad(e.to_string()))?.is_file() {
        return Err(bad("is not a file".into()));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|e| bad(e.to_string()))?;
    file.take(MAX_PROFILE + 1).read_to_end(&mut bytes).map_err(|e| bad(e.to_string()))?;
    if bytes.len() as u64 > MAX_PROFILE {
        return Err(bad(format!("is longer than {MAX_PROFILE} bytes")));
    }
    let _: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes).map_err(|e| bad(format!("is not JSON: {e}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(kind: ProfileType, path: &str) -> LinuxContainerSecurityContext {
        let seccomp =
            SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned(), ..Default::default() };
        LinuxContainerSecurityContext { seccomp: Some(seccomp), ..Default::default() }
    }

    fn kind(context: &LinuxContainerSecurityContext) -> Option<Kind> {
        profile(context).ok().map(|s| s.kind())
    }

    #[allow(deprecated, reason = "older kubelets send the string")]
    #[test]
    fn every_way_to_ask() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        std::fs::write(&path, "{\"defaultAction\":\"SCMP_ACT_ALLOW\"}").unwrap();
        let path = path.to_str().unwrap();
        let old =
            |text: &str| LinuxContainerSecurityContext { seccomp_profile_path: text.into(), ..Default::default() };
        for (asked, expected) in [
            (LinuxContainerSecurityContext::default(), Kind::Unconfined),
            (context(ProfileType::RuntimeDefault, ""), Kind::RuntimeDefault),
            (context(ProfileType::Unconfined, ""), Kind::Unconfined),
            (context(ProfileType::Localhost, path), Kind::Profile),
            (old("runtime/default"), Kind::RuntimeDefault),
            (old("docker/default"), Kind::RuntimeDefault),
            (old("unconfined"), Kind::Unconfined),
            (old(&format!("localhost/{path}")), Kind::Profile),
        ] {
            assert_eq!(kind(&asked), Some(expected), "{asked:?}");
        }
        let mut privileged = context(ProfileType::RuntimeDefault, "");
        privileged.privileged = true;
        assert_eq!(kind(&privileged), Some(Kind::Unconfined));
        assert_eq!(profile(&context(ProfileType::Localhost, path)).unwrap().profile, std::fs::read(path).unwrap());
    }

    #[test]
    fn profiles_that_are_none_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("text"), "not json").unwrap();
        std::fs::write(at("list"), "[]").unwrap();
        std::fs::write(at("long"), vec![b' '; MAX_PROFILE as usize + 1]).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        for name in ["text", "list", "long", "pipe", "missing", "."] {
            assert_eq!(kind(&context(ProfileType::Localhost, at(name).to_str().unwrap())), None, "{name}");
        }
        assert_eq!(kind(&context(ProfileType::Localhost, "relative.json")), None);
        assert_eq!(kind(&context(ProfileType::Localhost, "/dev/zero")), None);
        let mut pulled = context(ProfileType::RuntimeDefault, "");
        pulled.seccomp.get_or_insert_default().oci_ref = "r.example/p@sha256:1".into();
        for asked in [pulled, context(ProfileType::Oci, "")] {
            assert!(profile(&asked).unwrap_err().to_string().contains("from a registry"), "{asked:?}");
        }
    }
}
