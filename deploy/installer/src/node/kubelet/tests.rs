use super::*;

fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Paths) {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::below(dir.path());
    for (path, text) in files {
        files::write(&paths.host(path), text, 0o644).unwrap();
    }
    (dir, paths)
}

fn kubelet(line: &str, environment: &[&str]) -> Kubelet {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    Kubelet { arguments: Arguments::parse(&words), environment: environment.iter().map(PathBuf::from).collect() }
}

const NEW: &str = "unix:///run/cofferdam/cofferdam.sock";
const CONFIG: &str = "/var/lib/kubelet/config.yaml";
const FLAGS: &str = "/var/lib/kubelet/kubeadm-flags.env";

#[test]
fn a_configuration_file_is_changed() {
    let (_dir, paths) = node(&[(CONFIG, "containerRuntimeEndpoint: unix:///old\n")]);
    let kubelet = kubelet("kubelet --config=/var/lib/kubelet/config.yaml", &[]);
    assert_eq!(kubelet.endpoint(&paths).unwrap(), "unix:///old");
    let edits = kubelet.edits(&paths, NEW, true).unwrap();
    assert_eq!(edits.len(), 1);
    assert_eq!(edits[0].after, format!("containerRuntimeEndpoint: {NEW}\nfeatureGates:\n  {GATE}: true\n"));
}

#[test]
fn a_flag_of_an_environment_file_is_changed_and_the_gate_in_the_configuration() {
    let flags = "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///old\"\n";
    let (_dir, paths) = node(&[(CONFIG, "kind: KubeletConfiguration\n"), (FLAGS, flags)]);
    let line = "kubelet --config=/var/lib/kubelet/config.yaml --container-runtime-endpoint=unix:///old";
    let both = kubelet(line, &["/etc/default/kubelet", FLAGS]);
    assert_eq!(both.endpoint(&paths).unwrap(), "unix:///old");
    let edits = both.edits(&paths, NEW, true).unwrap();
    assert_eq!(edits[0].after, flags.replace("unix:///old", NEW));
    assert_eq!(edits[1].after, format!("kind: KubeletConfiguration\nfeatureGates:\n  {GATE}: true\n"));
    let error = kubelet(line, &[]).edits(&paths, NEW, true).unwrap_err().to_string();
    assert!(error.contains("command line"), "{error}");
}

#[test]
fn a_folder_of_drop_ins_gets_one() {
    let (_dir, paths) = node(&[(CONFIG, "containerRuntimeEndpoint: unix:///old\n")]);
    let kubelet = kubelet("kubelet --config=/var/lib/kubelet/config.yaml --config-dir=/etc/kubernetes/kubelet.d", &[]);
    let edits = kubelet.edits(&paths, NEW, true).unwrap();
    assert_eq!(edits.len(), 1);
    assert_eq!(edits[0].path, PathBuf::from("/etc/kubernetes/kubelet.d/zz-cofferdam.conf"));
    assert_eq!(edits[0].before, None);
    assert_eq!(kubelet.endpoint(&paths).unwrap(), "unix:///old");
    files::write(
        &paths.host("/etc/kubernetes/kubelet.d/10-other.conf"),
        "containerRuntimeEndpoint: unix:///a\n",
        0o644,
    )
    .unwrap();
    files::write(&paths.host(&edits[0].path.to_string_lossy()), &edits[0].after, 0o644).unwrap();
    files::write(&paths.host("/etc/kubernetes/kubelet.d/zzz.txt"), "containerRuntimeEndpoint: unix:///b\n", 0o644)
        .unwrap();
    assert_eq!(kubelet.endpoint(&paths).unwrap(), NEW, "or an uninstallation would leave the kubelet on Cofferdam");
}

#[test]
fn what_cannot_be_changed_says_where_it_is() {
    let (_dir, paths) = node(&[]);
    for (line, word) in [
        ("kubelet", "--config"),
        ("kubelet --config=/none.yaml", "/none.yaml"),
        ("kubelet --config=/a --feature-gates=PodAndContainerStatsFromCRI=false", "--feature-gates"),
    ] {
        let error = kubelet(line, &[]).edits(&paths, NEW, true).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(kubelet("kubelet", &[]).kubeconfig().is_err());
}
