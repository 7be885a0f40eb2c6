use std::collections::BTreeSet;

use super::*;

fn file(name: &str, text: &str) -> (PathBuf, String) {
    (PathBuf::from(name), text.to_owned())
}

fn merge(files: &[(PathBuf, String)]) -> Result<(Settings, Config), ConfigError> {
    load::merge(files, Path::new(product::USUAL))
}

fn defaults() -> Settings {
    Settings::default().complete(Path::new(product::USUAL))
}

fn refused(text: &str) -> String {
    crate::error::chain(&merge(&[file("/etc/c.toml", text)]).unwrap_err())
}

#[test]
fn later_files_win_key_by_key() {
    let (settings, config) = merge(&[
        file(
            "a",
            "run_dir = \"/run/a\"\n[vm]\nvcpus = 2\nmemory_mib = 512\n[registries.\"r:5000\"]\nplain_http = true\n",
        ),
        file("b", "[vm]\nmemory_mib = 1024\n[registries.\"r:5000\"]\nmirrors = [\"http://m\"]\n"),
    ])
    .unwrap();
    assert_eq!(config.vm_size, VmSize { vcpus: 2, memory_mib: 1024 });
    assert_eq!(config.socket, Path::new("/run/a/cofferdam.sock"));
    assert_eq!(settings.socket, config.socket);
    let registry = &config.registries["r:5000"];
    assert!(registry.plain_http && registry.mirrors == ["http://m"]);
}

#[test]
fn registries_have_a_folder_and_no_credentials_unless_told() {
    let store = |text: &str| merge(&[file("a", text)]).unwrap().1.store();
    let usual = store("");
    assert_eq!(usual.certs_dir.as_deref(), Some(Path::new("/etc/cofferdam/certs.d")));
    assert_eq!((usual.docker_config, usual.timeouts.progress.as_secs()), (None, 300));
    let other = store(
        "[images]\ncerts_dir = \"\"\ndocker_config = \"/root/.docker/config.json\"\nno_progress_seconds = 60\n\
         pinned = [\"registry.k8s.io/*\", \"busybox\"]\n\
         [registries.\"r\"]\ninsecure_redirects = true\n",
    );
    assert_eq!((other.certs_dir, other.timeouts.progress.as_secs()), (None, 60));
    assert_eq!(other.docker_config.as_deref(), Some(Path::new("/root/.docker/config.json")));
    assert!(other.registries["r"].insecure_redirects && usual.pinned.is_empty());
    assert_eq!(other.pinned, ["registry.k8s.io/*", "busybox"]);
    let policy = store("[images]\nsignature_policy = \"/etc/containers/policy.json\"\n").signature_policy;
    assert_eq!((usual.signature_policy, policy), (None, Some("/etc/containers/policy.json".into())));
}

#[test]
fn what_is_shown_has_no_passwords() {
    let text = "[registries.\"r\"]\nmirrors = [\"https://user:hidden@m/x\", \"https://n\"]\n";
    let shown = toml::to_string(&merge(&[file("a", text)]).unwrap().0.without_secrets()).unwrap();
    assert!(shown.contains("https://***@m/x") && shown.contains("https://n") && !shown.contains("hidden"), "{shown}");
}

#[test]
fn guests_grow_to_the_node_at_most() {
    let most = |text: &str| merge(&[file("a", text)]).unwrap().1.vm_max;
    assert_eq!(most(""), VmSize { vcpus: node_cpus().min(8), memory_mib: 8192 });
    assert_eq!(most("[vm]\nvcpus_max = 1\nmemory_max_mib = 512\n"), VmSize { vcpus: 1, memory_mib: 512 });
    assert_eq!(most("[vm]\nvcpus_max = 32\n").vcpus, node_cpus().min(32));
}

#[test]
fn unknown_keys_name_the_file_and_the_nearest_key() {
    assert_eq!(
        refused("[vm]\nmemory_mb = 1\n"),
        "configuration /etc/c.toml: unknown key \"vm.memory_mb\"; the nearest known one is \"vm.memory_mib\""
    );
    let text = refused("[registries.\"r.example\"]\nmirror = []\n");
    assert!(text.contains("\"registries.r.example.mirror\"") && text.contains("\"registries.*.mirrors\""), "{text}");
    assert!(refused("sokcet = 1\n").contains("\"socket\""));
    assert!(refused("[vmm]\nvcpus = 1\n").contains("\"vm.vcpus\""));
    assert!(refused("[tracing]\nendpiont = \"\"\n").contains("\"tracing.endpoint\""));
}

#[test]
fn bad_values_name_the_key_and_the_file() {
    for (text, key) in [
        ("log_level = \"loud\"\n", "log_level"),
        ("default_handler = \"runc\"\n", "default_handler"),
        ("cgroup_parent = \"a/../b\"\n", "cgroup_parent"),
        ("cgroup_driver = \"v1\"\n", "cgroup_driver"),
        ("cgroup_driver = \"systemd\"\ncgroup_parent = \"/kubepods\"\n", "cgroup_parent"),
        ("run_dir = \"run\"\n", "run_dir"),
        ("state_dir = \"/a/../b\"\n", "state_dir"),
        ("[pods]\nhost_namespaces_in = [\"*\"]\n", "pods.host_namespaces_in"),
        ("[vm]\nvcpus = 0\n", "vm.vcpus"),
        ("[vm]\nvcpus = 33\n", "vm.vcpus"),
        ("[vm]\nvcpus_max = 33\n", "vm.vcpus_max"),
        ("[vm]\nmemory_mib = 1\n", "vm.memory_mib"),
        ("[vm]\nkernel_args = \"a\\nb\"\n", "vm.kernel_args"),
        ("[streaming]\naddress = \"0.0.0.0:10\"\n", "streaming.address"),
        ("[streaming]\naddress = \"here\"\n", "streaming.address"),
        ("[metrics]\nlisten = \"0.0.0.0:9090\"\n", "metrics.listen"),
        ("[metrics]\nlisten = \"9090\"\n", "metrics.listen"),
        ("[tracing]\nendpoint = \"collector:4317\"\n", "tracing.endpoint"),
        ("[tracing]\nsample_percent = 101\n", "tracing.sample_percent"),
        ("[images]\nmax_parallel_layers = 0\n", "images.max_parallel_layers"),
        ("[images]\nno_progress_seconds = 0\n", "images.no_progress_seconds"),
        ("[images]\ncerts_dir = \"certs.d\"\n", "images.certs_dir"),
        ("[images]\ndocker_config = \"/a/../b\"\n", "images.docker_config"),
        ("[images]\nsignature_policy = \"policy.json\"\n", "images.signature_policy"),
        ("[images]\npinned = [\"a:1\", \"b**\"]\n", "images.pinned"),
        ("[images]\nmax_unpacking_layers = 257\n", "images.max_unpacking_layers"),
        ("[cni]\nbin_dirs = [\"x\"]\n", "cni.bin_dirs"),
    ] {
        let error = refused(text);
        assert!(error.contains(&format!("{key:?}")) && error.contains("/etc/c.toml"), "{text}: {error}");
    }
    assert!(refused(&format!("socket = \"/{}\"\n", "x".repeat(120))).contains("107 bytes"));
    assert!(refused("[vm]\nvcpus = \"two\"\n").contains("/etc/c.toml"));
    assert!(refused("run_dir = \n").contains("/etc/c.toml"));
}

#[test]
fn programs_and_the_guest_are_those_of_the_daemons_own_build() {
    let lib = Path::new("/opt/cofferdam/versions/2/lib/cofferdam");
    let config = load::merge(&[file("a", "[vm]\nkernel = \"/boot/own\"\n")], lib).unwrap().1;
    assert_eq!(config.vm.monitor, lib.join("cofferdam-vmm"));
    assert_eq!(config.vm.initramfs, lib.join("initramfs.cpio"));
    assert_eq!(config.vm.disk_template, lib.join("pod-disk.ext4"));
    assert_eq!(config.agent, lib.join("cofferdam-agent"));
    assert_eq!(config.vm.kernel, Path::new("/boot/own"), "what is configured counts");
}

#[test]
fn conf_d_is_read_in_the_order_of_names() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("config.toml");
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    std::fs::write(&main, "log_level = \"error\"\n").unwrap();
    for (name, level) in [("20-b.toml", "debug"), ("10-a.toml", "warn"), ("99.toml.bak", "bad"), (".99.toml", "bad")] {
        std::fs::write(dir.path().join("conf.d").join(name), format!("log_level = \"{level}\"\n")).unwrap();
    }
    assert_eq!(load(Some(&main)).unwrap().1.log_level, tracing::Level::DEBUG);
    std::fs::remove_file(&main).unwrap();
    assert!(matches!(load(Some(&main)), Err(ConfigError::Read { .. })));
}

#[test]
fn the_documentation_has_every_key_and_no_other() {
    let text = include_str!("../../../docs/configuration.md");
    let documented: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("| `")).filter_map(|rest| rest.split('`').next()).collect();
    let known = keys::known();
    let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
    assert_eq!(documented, known);
}

#[test]
fn the_delivered_file_shows_the_defaults() {
    let text = include_str!("../../../deploy/config.toml");
    assert_eq!(merge(&[file("c", text)]).unwrap().0, defaults(), "nothing is set in it");
    let shown: String = text
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| !line.starts_with([' ', '#']) && !line.is_empty())
        .map(|line| format!("{line}\n"))
        .collect();
    let (settings, _) = merge(&[file("shown", &shown)]).unwrap();
    assert_eq!(settings, defaults(), "what it shows are the defaults");
}

#[test]
fn what_config_prints_is_the_same_configuration() {
    let settings = defaults();
    let text = toml::to_string(&settings).unwrap();
    assert_eq!(merge(&[file("printed", &text)]).unwrap().0, settings);
}

#[test]
fn cgroup_paths_stay_below_the_root() {
    assert_eq!(
        CgroupParent::parse(CgroupDriver::Cgroupfs, "/kubepods/burstable/pod1-2/").unwrap().as_str(),
        "/kubepods/burstable/pod1-2"
    );
    for bad in ["", "/", "a", "/..", "/a/../b", "/a//b", "/a b", "/a\n", "/./a"] {
        assert!(CgroupParent::parse(CgroupDriver::Cgroupfs, bad).is_err(), "{bad:?}");
    }
}

#[test]
fn slices_are_taken_whole_or_not_at_all() {
    let slice = |text| CgroupParent::parse(CgroupDriver::Systemd, text);
    for good in ["test.slice", "/test.slice", "kubepods-burstable-pod0_1.slice", "-.slice"] {
        assert_eq!(slice(good).unwrap().as_str(), good.trim_start_matches('/'));
    }
    let kubelet = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0_1.slice";
    assert_eq!(slice(kubelet).unwrap().as_str(), "kubepods-burstable-pod0_1.slice");
    for bad in [
        "",
        "/",
        ".slice",
        "/kubepods",
        "a.scope",
        "-a.slice",
        "a--b.slice",
        "a/b.slice",
        "/a.slice/b.slice",
        "/a.slice/a-b-c.slice",
        "/../a-b.slice",
        "//a.slice",
        "a b.slice",
        "..slice/",
    ] {
        assert!(slice(bad).is_err(), "{bad:?}");
    }
}
