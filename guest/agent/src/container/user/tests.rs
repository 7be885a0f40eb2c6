use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:w:/var/www:/bin/sh\nbad:x:99999999999:1::/:\nshort:x\n\
                      evil:x:7:7:e:/home\u{7}:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwww:x:33:\nstaff:x:50:www,other\nadm:x:60:other, www\n";

fn named(name: &str) -> User {
    User { name: name.into(), ..User::default() }
}

#[test]
fn names_and_numbers() {
    for (name, expected) in [
        ("", Some((0, 0, vec![0]))),
        ("0", Some((0, 0, vec![0]))),
        ("root", Some((0, 0, vec![0]))),
        ("www", Some((33, 33, vec![33, 50, 60]))),
        ("33", Some((33, 33, vec![33, 50, 60]))),
        ("www:staff", Some((33, 50, vec![50, 60]))),
        ("www:0", Some((33, 0, vec![0, 50, 60]))),
        ("1234", Some((1234, 0, vec![0]))),
        ("1234:4321", Some((1234, 4321, vec![4321]))),
        ("2147483648", Some((2_147_483_648, 0, vec![0]))),
        ("4294967294", Some((4_294_967_294, 0, vec![0]))),
        ("4294967295", None),
        ("4294967296", None),
        ("99999999999999999999", None),
        ("0:4294967295", None),
        ("-1", None),
        ("nobody-here", None),
        ("bad", None),
        ("www:nogroup", None),
    ] {
        let got = resolve_in(PASSWD, GROUP, &named(name));
        let got = got.ok().map(|r| (r.uid, r.gid, r.groups));
        assert_eq!(got, expected, "{name:?}");
    }
}

#[test]
fn numbers_of_the_request_win() {
    let user = User { name: "www:staff".into(), uid: Some(5), gid: Some(6), ..User::default() };
    let got = resolve_in(PASSWD, GROUP, &user).unwrap();
    assert_eq!((got.uid, got.gid, got.groups), (5, 6, vec![6]));
    let user = User { uid: Some(u32::MAX), ..User::default() };
    assert!(resolve_in(PASSWD, GROUP, &user).is_err());
}

#[test]
fn strict_groups_are_those_of_the_request() {
    for (strict, expected) in [(false, vec![33, 50, 60, 7]), (true, vec![33, 7])] {
        let user = User { supplemental_groups: vec![7], strict_groups: strict, ..named("www") };
        assert_eq!(resolve_in(PASSWD, GROUP, &user).unwrap().groups, expected, "strict: {strict}");
    }
}

#[test]
fn a_home_with_control_characters_is_none() {
    assert_eq!(resolve_in(PASSWD, GROUP, &named("www")).unwrap().home.as_deref(), Some("/var/www"));
    assert_eq!(resolve_in(PASSWD, GROUP, &named("evil")).unwrap().home, None);
}

proptest::proptest! {
    /// Whatever the image holds, it neither panics nor yields the number that means "none".
    #[test]
    fn any_bytes(passwd in ".{0,300}", group in ".{0,300}", name in ".{0,20}") {
        if let Ok(got) = resolve_in(&passwd, &group, &named(&name)) {
            proptest::prop_assert!(got.uid != u32::MAX && got.gid != u32::MAX && !got.groups.contains(&u32::MAX));
        }
    }
}
