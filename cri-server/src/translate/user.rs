//! Who a container's first process is.

use cofferdam_proto::agent::User;
use cofferdam_proto::cri::{LinuxContainerSecurityContext, SupplementalGroupsPolicy};

use super::text;
use crate::error::CriError;

/// Most supplementary groups of a request; the kernel's own limit.
const MAX_GROUPS: usize = 65_536;

/// A uid or gid: 32 bits, and not the one that means "none" to the kernel.
fn id(what: &str, value: i64) -> Result<u32, CriError> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(CriError::invalid(format!("{what} {value} is not within 0 and {}", u32::MAX - 1))),
    }
}

/// The user of the request, or else of the image.
pub(crate) fn user(context: &LinuxContainerSecurityContext, image: &str) -> Result<User, CriError> {
    let named = !context.run_as_username.is_empty();
    if context.run_as_group.is_some() && context.run_as_user.is_none() && !named {
        return Err(CriError::invalid("run_as_group needs run_as_user or run_as_username beside it"));
    }
    if context.supplemental_groups.len() > MAX_GROUPS {
        return Err(CriError::invalid(format!("more than {MAX_GROUPS} supplemental groups")));
    }
    let uid = context.run_as_user.as_ref().map(|v| id("run_as_user", v.value)).transpose()?;
    let name = match (uid, named) {
        (Some(_), _) => "",
        (None, true) => context.run_as_username.as_str(),
        (None, false) => image,
    };
    text::line("user", name, 256)?;
    let policy = SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy)
        .map_err(|_| CriError::invalid("unknown supplemental groups policy"))?;
    Ok(User {
        name: name.to_owned(),
        uid,
        gid: context.run_as_group.as_ref().map(|v| id("run_as_group", v.value)).transpose()?,
        supplemental_groups: context
            .supplemental_groups
            .iter()
            .map(|g| id("supplemental group", *g))
            .collect::<Result<_, _>>()?,
        strict_groups: policy == SupplementalGroupsPolicy::Strict,
    })
}

/// CRI's `uid` and `username` of an image: the kubelet decides `runAsNonRoot` by them.
pub(crate) fn of_image(user: &str) -> (Option<i64>, String) {
    let name = user.split_once(':').map_or(user, |(user, _)| user);
    match name.parse::<u32>() {
        Ok(uid) if name.bytes().all(|b| b.is_ascii_digit()) => (Some(uid.into()), String::new()),
        _ => (None, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_proto::cri::Int64Value;

    use super::*;

    fn numbers(uid: Option<i64>, gid: Option<i64>, groups: &[i64]) -> LinuxContainerSecurityContext {
        LinuxContainerSecurityContext {
            run_as_user: uid.map(|value| Int64Value { value }),
            run_as_group: gid.map(|value| Int64Value { value }),
            supplemental_groups: groups.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn numbers_keep_to_32_bits() {
        for (value, ok) in [
            (0, true),
            (1, true),
            (i64::from(i32::MAX), true),
            (1 << 31, true),
            ((1 << 32) - 2, true),
            ((1 << 32) - 1, false),
            (1 << 32, false),
            ((1 << 32) + 1, false),
            (-1, false),
            (i64::MIN, false),
            (i64::MAX, false),
        ] {
            for context in
                [numbers(Some(value), None, &[]), numbers(Some(1), Some(value), &[]), numbers(None, None, &[7, value])]
            {
                assert_eq!(user(&context, "").is_ok(), ok, "{value}: {context:?}");
            }
        }
    }

    #[test]
    fn the_request_wins_over_the_image() {
        assert_eq!(user(&numbers(None, None, &[]), "www-data:www-data").unwrap().name, "www-data:www-data");
        let got = user(&numbers(Some(5), Some(6), &[7]), "www-data").unwrap();
        assert_eq!((got.name.as_str(), got.uid, got.gid, got.supplemental_groups), ("", Some(5), Some(6), vec![7]));
        let mut named = numbers(None, Some(3), &[]);
        named.run_as_username = "nobody".into();
        named.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
        let got = user(&named, "1:2").unwrap();
        assert_eq!((got.name.as_str(), got.uid, got.gid, got.strict_groups), ("nobody", None, Some(3), true));
        assert!(user(&numbers(None, Some(1), &[]), "5").is_err(), "a group alone");
        named.run_as_username = "a\nroot::0:0".into();
        assert!(user(&named, "").is_err());
    }

    #[test]
    fn users_of_images() {
        for (text, uid, name) in [
            ("", None, ""),
            ("0", Some(0), ""),
            ("1002:1003", Some(1002), ""),
            ("www-data", None, "www-data"),
            ("www-data:33", None, "www-data"),
            ("4294967296", None, "4294967296"),
            ("+5", None, "+5"),
        ] {
            assert_eq!(of_image(text), (uid, name.to_owned()), "{text}");
        }
    }
}
