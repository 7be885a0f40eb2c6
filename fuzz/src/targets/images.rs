//! Documents of registries and images, and the files that say which are trusted.

use std::io::Write as _;

use cofferdam_image_store::fuzzing;

use super::{Target, target, texts};
use crate::words::Words;

pub(super) const MANIFEST: Target = target("manifest", manifest, manifest_seeds);
pub(super) const IMAGE_CONFIG: Target = target("image_config", fuzzing::image_config, config_seeds);
pub(super) const REFERENCE: Target = Target { name: "reference", most: 600, run: reference, seeds: reference_seeds };
pub(super) const AUTH_CHALLENGE: Target = target("auth_challenge", auth_challenge, challenge_seeds);
pub(super) const HOSTS_TOML: Target = target("hosts_toml", hosts_toml, hosts_seeds);
pub(super) const SIGNATURE_POLICY: Target = target("signature_policy", signature_policy, policy_seeds);
pub(super) const IMAGE_ARCHIVE: Target =
    Target { name: "image_archive", most: 16 << 10, run: image_archive, seeds: archive_seeds };

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn lines(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let rest = bytes.get(end + 1..).unwrap_or_default();
    (String::from_utf8_lossy(&bytes[..end]).into_owned(), rest)
}

fn manifest(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    let served_as = words.one_of(&[None, Some(OCI_MANIFEST), Some(OCI_INDEX), Some("text/html")]);
    fuzzing::manifest(words.rest(), served_as);
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let layer = format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{DIGEST}","size":32,"annotations":{{"org.opencontainers.image.title":"a"}}}}"#
    );
    let config = format!(r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{DIGEST}","size":7}}"#);
    let platform = r#"{"os":"linux","architecture":"amd64","variant":"v2"}"#;
    let entry = format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{DIGEST}","size":5,"platform":{platform}}}"#);
    texts(&[
        &format!(r#" {{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{config},"layers":[{layer},{layer}]}}"#),
        &format!(r#" {{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entry},{entry}]}}"#),
        &format!(r#" {{"artifactType":"a/b","CONFIG":{config},"layers":null,"x":"\ud83d"}}"#),
        r#" {"schemaVersion":1,"fsLayers":[]}"#,
    ])
}

fn config_seeds() -> Vec<Vec<u8>> {
    texts(&[
        &format!(
            r#"{{"architecture":"amd64","os":"linux","variant":"v1","config":{{"User":"1:2","Env":["A=b"],"Entrypoint":["/a"],"Cmd":["b"],"WorkingDir":"/","StopSignal":"SIGTERM","Volumes":{{"/v":{{}}}},"ExposedPorts":{{"80/tcp":{{}}}},"Labels":{{"a":"b"}}}},"rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]}}}}"#
        ),
        r#"{"rootfs":{"diff_ids":[]},"config":null,"os":7}"#,
    ])
}

fn reference(bytes: &[u8]) {
    fuzzing::reference(&String::from_utf8_lossy(bytes));
}

fn reference_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "busybox",
        "a/b:tag",
        "docker.io/library/busybox:latest",
        "registry.example:5000/team/a.b_c-d:1.2-x",
        &format!("localhost/a@{DIGEST}"),
        &format!("[::1]:5000/a:t@{DIGEST}"),
        "index.docker.io/x",
    ])
}

fn auth_challenge(bytes: &[u8]) {
    let (first, rest) = lines(bytes);
    let (second, body) = lines(rest);
    fuzzing::auth_challenge(&[&first, &second], body);
}

fn challenge_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "Bearer realm=\"https://auth.example/token\",service=\"s\",scope=\"repository:a/b:pull\"\nBasic realm=x\n{\"errors\":[{\"code\":\"DENIED\",\"message\":\"no\"}]}",
        "Negotiate YII/+a==, bearer Realm = \"a\\\"b\" ,, scope=x\n\n<html><title>502</title><script>x</script>a</html>",
        "Digest realm=\"a, Basic realm=b\", qop=\"auth\", Basic\n,\n{\"error\":{\"code\":403,\"details\":\"quota\"}}",
    ])
}

fn hosts_toml(bytes: &[u8]) {
    let (registry, text) = lines(bytes);
    fuzzing::hosts_toml(&String::from_utf8_lossy(text), &registry);
}

fn hosts_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "docker.io\nserver = \"https://registry-1.docker.io\"\n[host.\"https://mirror.example/cache\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = [\"ca.pem\", \"/b.pem\"]\nclient = [[\"c.pem\", \"k.pem\"], \"d.pem\"]\nskip_verify = true\noverride_path = true\ndial_timeout = \"1m30.5s\"\n[host.\"https://mirror.example/cache\".header]\nx-a = [\"b\", \"c\"]\nAuthorization = \"d\"\n",
        "127.0.0.1:5000\nserver = \"http://user:pass%20w@[::1]:5000/v2\"\nclient = \"c.pem\"\n",
    ])
}

fn signature_policy(bytes: &[u8]) {
    let (reference, policy) = lines(bytes);
    fuzzing::signature_policy(policy, &reference);
}

fn policy_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"registry.example/team/a:1
{"default":[{"type":"reject"}],"transports":{"docker":{"registry.example/team":[{"type":"insecureAcceptAnything"}],"*.example":[{"type":"reject"}],"":[{"type":"insecureAcceptAnything"}]},"atomic":{}}}"#,
        r#"a
{"default":[{"type":"sigstoreSigned","keyData":"LS0tLS1CRUdJTiBQVUJMSUMgS0VZLS0tLS0KTUZrd0V3WUhLb1pJemowQ0FRWUlLb1pJemowREFRY0RRZ0FFCi0tLS0tRU5EIFBVQkxJQyBLRVktLS0tLQo=","signedIdentity":{"type":"exactReference","dockerReference":"a.example/b:c"}}]}"#,
        r#"a
{"default":[{"type":"sigstoreSigned","keyPath":"/none","signedIdentity":{"type":"remapIdentity","prefix":"a.example","signedPrefix":"b.example"}}]}"#,
    ])
}

/// A tar whose checksums are made right, or files by name: a name, and what is in it.
fn image_archive(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    if words.byte().is_multiple_of(2) {
        return fuzzing::image_archive(words.rest());
    }
    let mut archive = tar::Builder::new(Vec::new());
    while words.more() {
        let name = words.one_of(&["index.json", "manifest.json", "config.json", "layer.tar", "oci-layout", "a", "b"]);
        let kind = words.byte();
        let mut header = tar::Header::new_gnu();
        let result = if kind.is_multiple_of(8) {
            header.set_entry_type(if kind & 8 == 0 { tar::EntryType::Symlink } else { tar::EntryType::Link });
            header.set_size(0);
            archive.append_link(&mut header, name, words.one_of(&["a", "b", "../a", "/config.json", "index.json"]))
        } else {
            let length = usize::from(words.half());
            let content = words.bytes(length);
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, name, content)
        };
        result.expect("memory");
    }
    fuzzing::image_archive(&archive.into_inner().expect("memory"));
}

fn archive_seeds() -> Vec<Vec<u8>> {
    let docker = br#"[{"Config":"config.json","RepoTags":["b:1"],"Layers":["layer.tar"]}]"#;
    let layout = format!(
        r#"{{"manifests":[{{"digest":"{DIGEST}","annotations":{{"org.opencontainers.image.ref.name":"a.example/a:1"}}}}]}}"#
    );
    let config = br#"{"rootfs":{"diff_ids":[]}}"#;
    let mut seed = vec![1];
    for (number, content) in [(0, layout.as_bytes()), (1, docker), (2, config), (3, b"layer")] {
        seed.extend([number, 1]);
        seed.write_all(&(content.len() as u16).to_le_bytes()).expect("memory");
        seed.extend(content);
    }
    let links = vec![1, 1, 0, 2, 5, 0, 0, 2, 6, 8, 1];
    vec![seed, links]
}
