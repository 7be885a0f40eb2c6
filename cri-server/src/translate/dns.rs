//! `/etc/resolv.conf` from CRI's `dns_config`.

use std::fmt::Write as _;
use std::net::IpAddr;

use cofferdam_proto::cri::DnsConfig;

use super::text;
use crate::error::CriError;

/// Most servers, search domains or options: the kubelet's own limits are lower.
const MAX_ITEMS: usize = 64;

/// The file's text; `None` when there is no configuration or nothing in it, and the node's own file is meant.
pub(crate) fn resolv_conf(config: Option<&DnsConfig>) -> Result<Option<String>, CriError> {
    let Some(config) = config else { return Ok(None) };
    if config.servers.is_empty() && config.searches.is_empty() && config.options.is_empty() {
        return Ok(None);
    }
    if [config.servers.len(), config.searches.len(), config.options.len()].iter().any(|n| *n > MAX_ITEMS) {
        return Err(CriError::invalid(format!("dns_config has more than {MAX_ITEMS} entries of a kind")));
    }
    let mut file = String::new();
    if !config.searches.is_empty() {
        let _ = writeln!(file, "search {}", words("search domain", &config.searches)?);
    }
    for server in &config.servers {
        // An IPv6 address may carry a zone, "fe80::1%eth0".
        let (address, zone) = server.split_once('%').unwrap_or((server, ""));
        if address.parse::<IpAddr>().is_err() || !zone.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            return Err(CriError::invalid(format!("DNS server {server:?} is not an address")));
        }
        let _ = writeln!(file, "nameserver {server}");
    }
    if !config.options.is_empty() {
        let _ = writeln!(file, "options {}", words("DNS option", &config.options)?);
    }
    Ok(Some(file))
}

fn words(what: &str, list: &[String]) -> Result<String, CriError> {
    for word in list {
        text::name(what, word, 255)?;
        if word.contains(char::is_whitespace) {
            return Err(CriError::invalid(format!("{what} {word:?} has a blank")));
        }
    }
    Ok(list.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(servers: &[&str], searches: &[&str], options: &[&str]) -> DnsConfig {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        DnsConfig { servers: own(servers), searches: own(searches), options: own(options) }
    }

    #[test]
    fn writes_what_the_resolver_reads() {
        let file = resolv_conf(Some(&config(&["10.0.0.10", "fe80::1%eth0"], &["a.svc", "b"], &["ndots:5"]))).unwrap();
        assert_eq!(file.unwrap(), "search a.svc b\nnameserver 10.0.0.10\nnameserver fe80::1%eth0\noptions ndots:5\n");
        assert_eq!(resolv_conf(None).unwrap(), None);
        assert_eq!(resolv_conf(Some(&DnsConfig::default())).unwrap(), None);
        let file = resolv_conf(Some(&config(&[], &[], &["ndots:5"]))).unwrap();
        assert_eq!(file.unwrap(), "options ndots:5\n");
    }

    #[test]
    fn nothing_adds_a_line() {
        for bad in [
            config(&["1.1.1.1\nnameserver 6.6.6.6"], &[], &[]),
            config(&["one"], &[], &[]),
            config(&["::1%a b"], &[], &[]),
            config(&[], &["a\nnameserver 6.6.6.6"], &[]),
            config(&[], &["a b"], &[]),
            config(&[], &[""], &[]),
            config(&[], &[], &["ndots:5\r"]),
            config(&vec!["1.1.1.1"; 65], &[], &[]),
        ] {
            assert!(resolv_conf(Some(&bad)).is_err(), "{bad:?}");
        }
    }
}
