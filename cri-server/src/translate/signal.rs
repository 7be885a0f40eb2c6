//! Signals by name, as images write them, and by CRI's numbering.

use cofferdam_proto::cri::Signal;

/// SIGTERM.
pub(crate) const TERM: u32 = 15;
/// SIGKILL.
pub(crate) const KILL: u32 = 9;

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// `SIGTERM`, `term`, `15`, `SIGRTMIN+3`; `None` for what is none.
pub(crate) fn parse(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = NAMES.iter().position(|n| *n == name) {
        return u32::try_from(index).ok().map(|i| i + 1);
    }
    let offset = |rest: &str, sign: char| -> Option<u32> {
        if rest.is_empty() { Some(0) } else { rest.strip_prefix(sign)?.parse().ok() }
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN.checked_add(offset(rest, '+')?)?
    } else {
        RTMAX.checked_sub(offset(name.strip_prefix("RTMAX")?, '-')?)?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// CRI numbers signals by their names' alphabet; zero leaves the choice to the image. `None` for what is no signal of Linux.
pub(crate) fn of_cri(asked: i32) -> Option<Option<u32>> {
    match Signal::try_from(asked).ok()? {
        Signal::RuntimeDefault => Some(None),
        // Names that have another of the same number.
        Signal::Sigcld => Some(Some(17)),
        Signal::Sigiot => Some(Some(6)),
        Signal::Sigpoll => Some(Some(29)),
        other => {
            let name = other.as_str_name().strip_prefix("SIGNAL_")?.replace("PLUS", "+").replace("MINUS", "-");
            parse(&name).map(Some)
        }
    }
}

/// And back, for a status.
pub(crate) fn to_cri(number: u32) -> Signal {
    let mut all = (1..=Signal::Sigrtmax.into()).filter_map(|n| Signal::try_from(n).ok());
    all.find(|s| of_cri((*s).into()) == Some(Some(number))).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_of_cri_is_one_of_linux() {
        for number in 1..=i32::from(Signal::Sigrtmax) {
            let linux = of_cri(number).flatten();
            assert!(linux.is_some(), "{:?}", Signal::try_from(number));
            assert_eq!(of_cri(to_cri(linux.unwrap()).into()).flatten(), linux, "{number}");
        }
        assert_eq!(of_cri(0), Some(None));
        assert_eq!(of_cri(Signal::Sigrtminplus3.into()), Some(Some(37)));
        assert_eq!(of_cri(Signal::Sigusr1.into()), Some(Some(10)));
        assert_eq!(of_cri(1000), None);
        assert_eq!(to_cri(15), Signal::Sigterm);
    }

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGQUIT", 3),
            ("SIGWINCH", 28),
            ("SIGSYS", 31),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "-1", "SIG", "SIGNONE", "SIGRTMIN+31", "SIGRTMAX-31", "SIGRTMIN-1", "99999999999"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
