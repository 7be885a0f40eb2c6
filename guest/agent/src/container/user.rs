//! Who a container's process is, by the image's own /etc/passwd and /etc/group.

use std::os::fd::AsFd;

use cofferdam_proto::agent::User;

use super::paths::read_image_file;
use crate::error::{Error, Result};

/// Longest /etc/passwd or /etc/group that is read.
const MAX_FILE: usize = 4 << 20;
/// The kernel's own limit (NGROUPS_MAX).
const MAX_GROUPS: usize = 65536;

/// Numbers, and what else the image says of the user.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resolved {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups, the primary one first.
    pub groups: Vec<u32>,
    /// Home directory, if /etc/passwd names one.
    pub home: Option<String>,
}

/// A uid or gid. 2³²−1 means "none" to the kernel.
fn number(text: &str) -> Option<Result<u32>> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(check(text.parse().unwrap_or(u32::MAX), text))
}

fn check(id: u32, text: &str) -> Result<u32> {
    if id == u32::MAX { Err(Error::invalid(format!("{text} is out of range for a uid or gid"))) } else { Ok(id) }
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, uid, gid, _, home) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next(), fields.next());
        let (uid, gid) = (number(uid)?.ok()?, number(gid)?.ok()?);
        Some(Account { name, uid, gid, home: home.unwrap_or("") })
    })
}

/// Name, number, members.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, number(gid)?.ok()?, fields.next().unwrap_or("")))
    })
}

/// Resolves `user` in the image whose root is `root`.
///
/// # Errors
/// For a name that the image does not know, or a number out of range.
pub fn resolve(root: impl AsFd, user: &User) -> Result<Resolved> {
    let read = |path| -> Result<String> {
        let bytes = read_image_file(root.as_fd(), path, MAX_FILE)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    resolve_in(&read("/etc/passwd")?, &read("/etc/group")?, user)
}

/// Home directory of `uid` by the /etc/passwd that the container sees, volumes included; the container may change it.
pub fn home(root: impl AsFd, uid: u32) -> Option<String> {
    let passwd = read_image_file(root, "/etc/passwd", MAX_FILE).ok()??;
    let passwd = String::from_utf8_lossy(&passwd);
    accounts(&passwd).find(|a| a.uid == uid).and_then(|a| usable_home(a.home))
}

fn usable_home(home: &str) -> Option<String> {
    (home.starts_with('/') && !home.contains(|c: char| c.is_control())).then(|| home.to_owned())
}

pub(crate) fn resolve_in(passwd: &str, group: &str, user: &User) -> Result<Resolved> {
    let (user_part, group_part) = match user.name.split_once(':') {
        Some((u, g)) => (u, Some(g)),
        None => (user.name.as_str(), None),
    };
    let account;
    let uid;
    let asked = match user.uid {
        Some(uid) => Some(check(uid, &uid.to_string())?),
        None if user_part.is_empty() => Some(0),
        None => number(user_part).transpose()?,
    };
    if let Some(number) = asked {
        uid = number;
        account = accounts(passwd).find(|a| a.uid == number);
    } else {
        account = accounts(passwd).find(|a| a.name == user_part);
        uid = account
            .as_ref()
            .map(|a| a.uid)
            .ok_or_else(|| Error::invalid(format!("there is no user {user_part:?} in the image's /etc/passwd")))?;
    }
    let group_part = group_part.filter(|g| !g.is_empty() && user.uid.is_none());
    let gid = match (user.gid, group_part) {
        (Some(gid), _) => check(gid, &gid.to_string())?,
        (None, Some(name)) => match number(name).transpose()? {
            Some(gid) => gid,
            None => groups(group)
                .find(|(n, _, _)| *n == name)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| Error::invalid(format!("there is no group {name:?} in the image's /etc/group")))?,
        },
        (None, None) => account.as_ref().map_or(0, |a| a.gid),
    };
    let mut all = vec![gid];
    let mut add = |gid| {
        if !all.contains(&gid) {
            all.push(gid);
        }
        if all.len() > MAX_GROUPS { Err(Error::invalid("the user has too many groups")) } else { Ok(()) }
    };
    if !user.strict_groups
        && let Some(account) = &account
    {
        for (_, gid, members) in groups(group) {
            if members.split(',').any(|m| m.trim() == account.name) {
                add(gid)?;
            }
        }
    }
    for gid in &user.supplemental_groups {
        add(check(*gid, &gid.to_string())?)?;
    }
    let home = account.and_then(|a| usable_home(a.home));
    Ok(Resolved { uid, gid, groups: all, home })
}

#[cfg(test)]
mod tests;
