//! What else the daemon reads: specifications of devices, its records, its configuration, and what
//! agents say of their containers.

use std::cell::OnceCell;
use std::fs;

use cofferdam::fuzzing;
use cofferdam_proto::agent;
use prost::Message;

use super::{Target, target, texts};
use crate::scratch;
use crate::words::Words;

pub(super) const CDI: Target = target("cdi", cdi, cdi_seeds);
pub(super) const RECORD: Target = target("record", fuzzing::record, record_seeds);
pub(super) const AGENT_REPLIES: Target = target("agent_replies", agent_replies, reply_seeds);
pub(super) const CONFIG_TOML: Target = target("config_toml", config_toml, config_seeds);

thread_local! {
    static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

/// Writes `text` to a file of this name in a folder where nothing else is, and calls `read` with
/// the folder.
fn with_file(name: &str, text: &[u8], read: impl FnOnce(&std::path::Path)) {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| scratch::dir().expect("a folder")).path();
        let file = folder.join(name);
        fs::write(&file, text).expect("a file");
        read(folder);
        fs::remove_file(&file).expect("it was made");
    });
}

fn cdi(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    let name = words.one_of(&["a.json", "a.yaml"]);
    with_file(name, words.rest(), |folder| fuzzing::cdi(folder, &["vendor.com/net=one", "vendor.com/net=two"]));
}

fn cdi_seeds() -> Vec<Vec<u8>> {
    let json = r#"{"cdiVersion":"0.6.0","kind":"vendor.com/net","annotations":{"a":"b"},"devices":[{"name":"one","containerEdits":{"env":["A=b"],"deviceNodes":[{"path":"/dev/x","hostPath":"/dev/null","type":"c","major":1,"minor":3,"fileMode":438,"permissions":"rw","uid":0,"gid":0}],"mounts":[{"hostPath":"/","containerPath":"/a","options":["ro","nosuid","bind"]}],"additionalGids":[7]}},{"name":"two","containerEdits":{"hooks":[{}]}}],"containerEdits":{"env":["C=d"]}}"#;
    let yaml = "cdiVersion: \"0.6.0\"\nkind: vendor.com/net\ndevices:\n- name: one\n  containerEdits: &e\n    env: [A=b, \"C=d\"]\n    deviceNodes:\n    - path: /dev/null\n- name: two\n  containerEdits: *e\n";
    vec![[&[0], json.as_bytes()].concat(), [&[1], yaml.as_bytes()].concat()]
}

fn record_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"v":1,"record":{"id":"a","name":"n","namespace":"ns","uid":"u","attempt":0,"handler":"vm","kind":"vm","phase":"ready","created_at":1,"labels":{"a":"b"},"annotations":{},"log_directory":"/l","namespaces":{}}}"#,
        r#"{"v":1,"record":{"id":"a","pod":"p","name":"n","attempt":1,"phase":"running","image":"i","image_id":"sha256:a","created_at":1,"labels":{},"annotations":{},"stop_signal":15,"mounts":[{"container_path":"/a"}]}}"#,
        r#"{"v":2,"record":{"pod":"p","labels":7,"phase":"later"}}"#,
    ])
}

/// Messages that an agent sends, in the wire's form.
fn agent_replies(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    let most = words.long();
    let wire = words.rest();
    if let Ok(reply) = agent::ContainerStatsReply::decode(wire) {
        fuzzing::container_stats(reply, most);
    }
    let _ = agent::PodStatsReply::decode(wire);
    let _ = agent::HelloReply::decode(wire);
}

fn reply_seeds() -> Vec<Vec<u8>> {
    let stall = Some(agent::Stall { avg10: f64::NAN, avg60: 1.5, avg300: 1e300, total_micros: u64::MAX });
    let device = |minor| agent::DeviceIo { major: 8, minor, read_bytes: 7, ..Default::default() };
    let usage = agent::CgroupUsage {
        cpu_nanos: u64::MAX,
        memory_bytes: 1 << 40,
        io: vec![device(1), device(0), device(1)],
        io_pressure: Some(agent::Pressure { some: stall, full: stall }),
        ..Default::default()
    };
    let reply = agent::ContainerStatsReply {
        id: "a".into(),
        usage: Some(usage),
        writable_bytes: u64::MAX,
        processes: Some(agent::ProcessStats { sockets: u64::MAX, ..Default::default() }),
        ..Default::default()
    };
    let all = agent::PodStatsReply { containers: vec![reply.clone()] };
    vec![[&[0xff; 8][..], &reply.encode_to_vec()].concat(), [&[9; 8][..], &all.encode_to_vec()].concat()]
}

fn config_toml(bytes: &[u8]) {
    with_file("config.toml", bytes, |folder| fuzzing::config(&folder.join("config.toml")));
}

fn config_seeds() -> Vec<Vec<u8>> {
    let installed = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config.toml")).expect("the product's own");
    let all = "default_handler = \"vm\"\n[vm]\ntemplate = false\n[images]\nsignature_policy = \"/a\"\n[images.registries.\"docker.io\"]\nmirrors = [\"https://m.example\"]\nmirrors_only = true\n[pods]\nhost_namespaces_in = [\"kube-system\"]\n";
    vec![installed, all.as_bytes().to_vec()]
}
