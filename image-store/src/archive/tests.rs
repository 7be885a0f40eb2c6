use std::io::Write;

use proptest::prelude::*;

use super::*;

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn open(bytes: &[u8]) -> StoreResult<(Archive, Vec<Found>)> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Archive::open(file, None, &Limits::default(), &|| true)
}

fn good() -> Vec<u8> {
    let config = br#"{"rootfs":{"diff_ids":[]}}"#;
    let entry = format!(r#"{{"digest":"{0}","annotations":{{"{1}":"a.example/a:1"}}}}"#, Digest::of(b"x"), NAME);
    archive(&[
        ("config.json", config),
        ("layer.tar", &[7; 700]),
        ("manifest.json", br#"[{"Config":"config.json","RepoTags":["b:1"],"Layers":["layer.tar"]}]"#),
        ("index.json", format!(r#"{{"manifests":[{entry}]}}"#).as_bytes()),
    ])
}

const NAME: &str = "org.opencontainers.image.ref.name";

#[test]
fn files_are_had_by_digest_and_by_name() {
    let (archive, found) = open(&good()).unwrap();
    let names: Vec<_> = found.iter().flat_map(|found| &found.names).map(Reference::to_string).collect();
    assert_eq!(names, ["a.example/a:1", "docker.io/library/b:1"]);
    assert_eq!((found[0].served, found[1].served), (Some(Digest::of(b"x")), None));
    let manifest = archive.document(&found[1].root, 4096).unwrap();
    assert!(archive.document(&found[1].root, 10).is_ok(), "what was made here has no limit");
    let layer = Digest::of(&[7; 700]);
    assert!(String::from_utf8_lossy(&manifest).contains(&layer.hex()));
    assert_eq!(archive.document(&layer, 700).unwrap().len(), 700);
    assert!(matches!(archive.document(&layer, 699), Err(StoreError::TooLarge { .. })));
    assert!(matches!(archive.document(&Digest::of(b"x"), 700), Err(StoreError::NotFound { .. })));
}

#[test]
fn an_archive_has_a_bounded_table() {
    let block = archive(&[("a", b"")])[..512].to_vec();
    let error = open(&block.repeat(100_001)).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    let deep = "x".repeat(4000);
    let many: Vec<_> = (0..5000).map(|n| format!("{n}/{deep}")).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (&**name, &b""[..])).collect();
    let error = open(&archive(&many)).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
}

proptest! {
    #[test]
    fn bytes_that_are_changed_never_panic(at in 0usize..5632, bytes in prop::collection::vec(any::<u8>(), 1..40)) {
        let mut tar = good();
        let end = (at + bytes.len()).min(tar.len());
        if at < end {
            tar[at..end].copy_from_slice(&bytes[..end - at]);
        }
        if let Ok((archive, found)) = open(&tar) {
            for found in found {
                let _ = archive.document(&found.root, 1 << 20);
            }
        }
    }
}
