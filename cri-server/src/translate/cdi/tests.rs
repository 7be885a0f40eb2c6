use std::fs;

use super::*;
use crate::records::tests::pod as pod_record;

/// The two folders.
struct Node {
    _dir: tempfile::TempDir,
    etc: PathBuf,
    run: PathBuf,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
        fs::create_dir(&etc).unwrap();
        fs::create_dir(&run).unwrap();
        Self { _dir: dir, etc, run }
    }

    fn ask(&self, names: &[&str]) -> Result<Edits, CriError> {
        let asked: Vec<CdiDevice> = names.iter().map(|n| CdiDevice { name: (*n).into() }).collect();
        edits(Kind::Host, &asked, &[&self.etc, &self.run])
    }

    fn refusal(&self, name: &str) -> String {
        match self.ask(&[name]).expect_err(name) {
            CriError::Invalid(why) => why,
            other => panic!("{name}: {other}"),
        }
    }
}

/// A specification of `v.com/c` with the device `d`, whose edits are given.
fn spec(edits: &str) -> String {
    format!(r#"{{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{{"name":"d","containerEdits":{edits}}}]}}"#)
}

const YAML: &str = r#"
cdiVersion: "1.0.0"
kind: v.com/c
annotations: {made.by: hand}
containerEdits:
  env: [SHARED=1, COLOUR=spec]
  additionalGids: [0, 44]
devices:
- name: d
  containerEdits:
    env: [COLOUR=device]
    additionalGids: [44, 109]
    deviceNodes:
    - {path: /dev/own, hostPath: /dev/zero, type: c, major: 1, minor: 5, permissions: rw}
    mounts:
    - {hostPath: /etc/hostname, containerPath: /etc/driver, options: [ro, nosuid, nodev, rbind, rprivate]}
- name: all
  containerEdits:
    deviceNodes: [{path: /dev/null}]
"#;

#[test]
fn a_device_brings_its_specification_s_edits_once() {
    let node = Node::new();
    fs::write(node.etc.join("v.yaml"), YAML).unwrap();
    let got = node.ask(&["v.com/c=d", "v.com/c=all", "v.com/c=d"]).unwrap();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(got.env, [pair("SHARED", "1"), pair("COLOUR", "device")]);
    assert_eq!(got.groups, [44, 109]);
    let devices: Vec<_> = got.devices.iter().map(|d| [&d.path[..], &d.source, &d.permissions]).collect();
    assert_eq!(devices, [["/dev/own", "/dev/zero", "rw"], ["/dev/null", "/dev/null", "rwm"]]);
    let mount = &got.mounts[0];
    assert!(mount.readonly && mount.host_path == "/etc/hostname" && mount.container_path == "/etc/driver");
    assert_eq!(mount.mount_options, ["nosuid", "nodev"]);
}

#[test]
fn the_later_folder_wins_and_two_files_of_one_do_not_agree() {
    let node = Node::new();
    fs::write(node.etc.join("v.json"), spec(r#"{"env":["FROM=etc"]}"#)).unwrap();
    assert_eq!(node.ask(&["v.com/c=d"]).unwrap().env[0].1, "etc");
    fs::write(node.run.join("v.yml"), spec(r#"{"env":["FROM=run"]}"#)).unwrap();
    assert_eq!(node.ask(&["v.com/c=d"]).unwrap().env[0].1, "run");
    fs::write(node.run.join("w.json"), spec(r#"{"env":["FROM=other"]}"#)).unwrap();
    let why = node.refusal("v.com/c=d");
    assert!(why.contains("v.yml") && why.contains("w.json"), "{why}");
}

#[test]
fn an_unknown_device_is_named_with_where_it_was_looked_for() {
    let node = Node::new();
    fs::write(node.etc.join("v.json"), spec("{}")).unwrap();
    fs::write(node.run.join("broken.json"), "{").unwrap();
    fs::write(node.run.join("notes.txt"), "{").unwrap();
    for name in ["v.com/c=e", "v.com/x=d", "w.com/c=d"] {
        let why = node.refusal(name);
        assert!(why.contains(name) && why.contains(node.etc.to_str().unwrap()), "{why}");
        assert!(why.contains(node.run.to_str().unwrap()) && why.contains("broken.json"), "{why}");
        assert!(!why.contains("notes.txt"), "{why}");
    }
    assert!(node.refusal("../../etc/passwd").contains("vendor/class=device"));
    assert!(edits(Kind::Host, &vec![CdiDevice { name: "a/b=c".into() }; 300], &[]).is_err());
    // A folder that is missing is as an empty one.
    let asked = [CdiDevice { name: "a/b=c".into() }];
    assert!(edits(Kind::Host, &asked, &[Path::new("/nonexistent")]).unwrap_err().to_string().contains("/nonexistent"));
}

#[test]
fn annotations_name_devices_as_the_field_does() {
    let field = [CdiDevice { name: "v.com/c=field".into() }];
    let annotation = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let annotations = HashMap::from([
        annotation("cdi.k8s.io/plugin_b", "v.com/c=d"),
        annotation("cdi.k8s.io/plugin_a", "v.com/c=e,w.com/x=y"),
        annotation("example.com/cdi.k8s.io", "v.com/c=other"),
    ]);
    let names: Vec<String> = asked(&field, &annotations).unwrap().into_iter().map(|device| device.name).collect();
    assert_eq!(names, ["v.com/c=field", "v.com/c=e", "w.com/x=y", "v.com/c=d"]);
    for bad in ["", "v.com/c=d, v.com/c=e", "v.com/c=d,", "gpu0"] {
        let annotations = HashMap::from([annotation("cdi.k8s.io/plugin", bad)]);
        let why = asked(&[], &annotations).unwrap_err().to_string();
        assert!(why.contains("cdi.k8s.io/plugin") && why.contains("vendor/class=device"), "{why}");
    }
}

#[test]
fn a_microvm_gets_none() {
    let asked = [CdiDevice { name: "v.com/c=d".into() }];
    let error = edits(Kind::Vm, &asked, &[]).unwrap_err();
    assert!(matches!(&error, CriError::Invalid(why) if why.contains("handler \"host\"")), "{error}");
    assert_eq!(edits(Kind::Vm, &[], &[]).unwrap(), Edits::default());
}

#[test]
fn edits_that_are_wrong_or_not_done_are_refused() {
    for (sort, edits, word) in [
        ("hooks", r#"{"hooks":[{"hookName":"createContainer","path":"/bin/x","args":["x"]}]}"#, "hooks"),
        ("network devices", r#"{"netDevices":[{"hostInterfaceName":"a","name":"b"}]}"#, "netDevices"),
        ("cache classes", r#"{"intelRdt":{"closID":"x"}}"#, "intelRdt"),
        ("variable without =", r#"{"env":["PLAIN"]}"#, "NAME=value"),
        ("variable without a name", r#"{"env":["=x"]}"#, "NAME=value"),
        ("NUL in a variable", r#"{"env":["A=\u0000"]}"#, "control character"),
        ("newline in a variable", r#"{"env":["A=x\nB=y"]}"#, "control character"),
        ("climbing device", r#"{"deviceNodes":[{"path":"/dev/../etc/x","hostPath":"/dev/zero"}]}"#, "climbs"),
        ("relative device", r#"{"deviceNodes":[{"path":"dev/zero"}]}"#, "absolute"),
        ("climbing source", r#"{"deviceNodes":[{"path":"/dev/x","hostPath":"/dev/../dev/zero"}]}"#, "climbs"),
        ("no device", r#"{"deviceNodes":[{"path":"/dev/x","hostPath":"/etc/hostname"}]}"#, "not a device"),
        ("missing device", r#"{"deviceNodes":[{"path":"/dev/nonexistent"}]}"#, "/dev/nonexistent"),
        ("wrong type", r#"{"deviceNodes":[{"path":"/dev/zero","type":"b"}]}"#, "type c"),
        ("wrong number", r#"{"deviceNodes":[{"path":"/dev/zero","major":1,"minor":6}]}"#, "1:5"),
        ("other owner", r#"{"deviceNodes":[{"path":"/dev/zero","uid":12345}]}"#, "owner"),
        ("other mode", r#"{"deviceNodes":[{"path":"/dev/zero","fileMode":1}]}"#, "fileMode"),
        ("permissions", r#"{"deviceNodes":[{"path":"/dev/zero","permissions":"rx"}]}"#, "permissions"),
        ("missing source", r#"{"mounts":[{"hostPath":"/nonexistent/x","containerPath":"/x"}]}"#, "/nonexistent/x"),
        ("over the root", r#"{"mounts":[{"hostPath":"/etc","containerPath":"/"}]}"#, "root"),
        ("climbing mount", r#"{"mounts":[{"hostPath":"/etc","containerPath":"/a/../.."}]}"#, "climbs"),
        ("tmpfs", r#"{"mounts":[{"hostPath":"/etc","containerPath":"/x","type":"tmpfs"}]}"#, "bind"),
        ("shared mount", r#"{"mounts":[{"hostPath":"/etc","containerPath":"/x","options":["rshared"]}]}"#, "rshared"),
        ("no group", r#"{"additionalGids":[4294967295]}"#, "4294967295"),
    ] {
        let node = Node::new();
        fs::write(node.etc.join("v.json"), spec(edits)).unwrap();
        let why = node.refusal("v.com/c=d");
        assert!(why.contains(word) && why.contains("v.com/c=d") && why.contains("v.json"), "{sort}: {why}");
    }
}

#[test]
fn files_that_are_no_specifications_say_why() {
    let good = spec("{}");
    let bomb = {
        let level = |n: usize| format!("l{n}: &l{n} [{}]\n", vec![format!("*l{}", n - 1); 10].join(","));
        let levels: String = (1..9).map(level).collect();
        format!("cdiVersion: '0.6.0'\nl0: &l0 [x]\n{levels}kind: v.com/c\ndevices: []\n")
    };
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (name, text, word) in [
        ("v.json", good.replace("0.6.0", "9.0.0"), "9.0.0"),
        ("v.json", good.replace("0.6.0", "0.6"), "cdiVersion"),
        ("v.json", good.replace(r#""cdiVersion":"0.6.0","#, ""), "cdiVersion"),
        ("v.json", good.replace("v.com/c", "../etc"), "kind"),
        ("v.json", good.replace(r#""d""#, r#""..""#), "name"),
        ("v.json", good.replace(r#""d""#, r#""a/../b""#), "name"),
        ("v.json", good.replace(r#""d""#, "7"), "string"),
        ("v.json", good.replace("\"containerEdits\":{}", "\"containerEdits\":7"), "invalid type"),
        ("v.json", good.replace("\"kind\"", "\"sort\":1,\"kind\""), "sort"),
        ("v.json", spec(r#"{"env":"A=B"}"#), "sequence"),
        ("v.json", spec(r#"{"env":[1]}"#), "string"),
        ("v.json", spec(r#"{"additionalGids":[-1]}"#), "-1"),
        ("v.json", spec(r#"{"deviceNodes":[{"hostPath":"/dev/zero"}]}"#), "path"),
        ("v.json", String::new(), "v.json"),
        ("v.json", " ".repeat(spec::MAX_FILE as usize + 1), "longer"),
        ("v.json", deep.clone(), "v.json"),
        ("v.yaml", deep, "v.yaml"),
        ("v.yaml", bomb, "v.yaml"),
        ("v.yaml", YAML.replace("devices:", "gadgets:"), "gadgets"),
        ("v.yaml", "kind: [".into(), "v.yaml"),
        ("v.yaml", format!("{YAML}---\n{YAML}"), "v.yaml"),
        ("v.yaml", YAML.replace("name: all", "name: d"), "two devices"),
    ] {
        let node = Node::new();
        fs::write(node.etc.join(name), &text).unwrap();
        let why = node.refusal("v.com/c=d");
        assert!(why.contains(word), "{name} {:?}: {why}", shorten(&text));
        assert!(why.len() < 2000, "{why}");
    }
}

#[test]
fn what_is_no_file_of_text_is_not_read() {
    let node = Node::new();
    let huge = node.etc.with_file_name("huge");
    fs::File::create(&huge).unwrap().set_len(1 << 40).unwrap();
    std::os::unix::fs::symlink(&huge, node.etc.join("a.json")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", node.etc.join("b.json")).unwrap();
    std::os::unix::fs::symlink("/nonexistent", node.etc.join("c.yaml")).unwrap();
    fs::write(node.etc.join("d.json"), b"\xff\xfe").unwrap();
    fs::create_dir(node.run.join("e.json")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, node.run.join("f.json"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let folder = Folder::read(&node.etc);
    assert!(folder.specs.is_empty());
    for (why, word) in folder.broken.iter().zip(["longer", "not a file", "No such file", "UTF-8"]) {
        assert!(why.contains(word), "{why}");
    }
    assert_eq!((folder.broken.len(), Folder::read(&node.run).broken.len()), (4, 2));
    // A link to an ordinary file is one, and the broken ones are not in its way.
    let real = node.etc.with_file_name("real");
    fs::write(&real, spec(r#"{"env":["A=B"]}"#)).unwrap();
    std::os::unix::fs::symlink(&real, node.run.join("g.json")).unwrap();
    assert_eq!(node.ask(&["v.com/c=d"]).unwrap().env.len(), 1);
    for n in 0..MAX_FILES {
        fs::write(node.etc.join(format!("n{n}")), "").unwrap();
    }
    assert!(Folder::read(&node.etc).broken.iter().any(|why| why.contains("more than")));
}

#[test]
fn edits_are_made_on_top_of_what_is_asked() {
    let node = Node::new();
    fs::write(node.etc.join("v.yaml"), YAML).unwrap();
    let edits = node.ask(&["v.com/c=d"]).unwrap();
    let mount = |path: &str| Mount { container_path: path.into(), host_path: "/tmp".into(), ..Default::default() };
    let mounts = edits.mounts(&[mount("/data"), mount("/etc/driver/"), mount("/etc/driver2")]);
    let seen: Vec<_> = mounts.iter().map(|m| [&m.container_path[..], &m.host_path]).collect();
    assert_eq!(seen, [["/data", "/tmp"], ["/etc/driver2", "/tmp"], ["/etc/driver", "/etc/hostname"]]);
    let own = |path: &str| agent::Device { path: path.into(), source: "/dev/full".into(), permissions: "r".into() };
    let mut request = agent::CreateContainerRequest {
        process: Some(agent::Process {
            env: vec![b"COLOUR=asked".to_vec(), b"COLOURS=two".to_vec()],
            user: Some(agent::User { supplemental_groups: vec![7, 44], ..Default::default() }),
            ..Default::default()
        }),
        devices: vec![own("/dev/a"), own("/dev/own")],
        ..Default::default()
    };
    edits.apply(&mut request);
    let process = request.process.unwrap();
    let env: Vec<&str> = process.env.iter().map(|e| std::str::from_utf8(e).unwrap()).collect();
    assert_eq!(env, ["COLOUR=device", "COLOURS=two", "SHARED=1"]);
    assert_eq!(process.user.unwrap().supplemental_groups, [7, 44, 109]);
    let devices: Vec<_> = request.devices.iter().map(|d| [&d.path[..], &d.source]).collect();
    assert_eq!(devices, [["/dev/a", "/dev/full"], ["/dev/own", "/dev/zero"]]);
}

#[test]
fn a_container_s_plan_looks_in_the_node_s_folders() {
    let image = super::super::container::tests::image();
    let asked = cofferdam_proto::cri::ContainerConfig {
        cdi_devices: vec![CdiDevice { name: "cofferdam.test/none=x".into() }],
        ..super::super::container::tests::asked()
    };
    for (kind, words) in [(Kind::Host, ["/etc/cdi", "/var/run/cdi"]), (Kind::Vm, ["handler \"host\"", "microVM"])] {
        let pod = crate::records::PodRecord { kind, ..pod_record("p") };
        let error = super::super::container::plan("id", &pod, &asked, &image, 7).unwrap_err().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{error}");
    }
}
