//! What the kubelet of this node was told: its command line, and the files that it names.
//!
//! A kubelet that runs counts by its own command line. Where none runs, what kubeadm has written
//! for one counts. A setting of the command line goes before one of a file in `--config-dir`, and
//! that before one of `--config`, as in the kubelet itself.

#![expect(clippy::disallowed_methods, reason = "a command of its own: nothing else waits for its thread")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What kubeadm adds to the kubelet's command line.
const KUBEADM_FLAGS: &str = "var/lib/kubelet/kubeadm-flags.env";
/// The configuration file that kubeadm's unit of the kubelet names.
const KUBEADM_CONFIG: &str = "/var/lib/kubelet/config.yaml";
/// Longest command line or file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;
/// Most files of a `--config-dir`.
const MAX_FILES: usize = 64;

/// A kubelet's settings.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// Where they are from, for people.
    pub(super) source: String,
    /// Where a setting is best changed.
    pub(super) file: Option<PathBuf>,
    /// The command line's, without the dashes.
    flags: BTreeMap<String, String>,
    /// The files', later ones on top.
    config: Value,
}

impl Settings {
    /// A setting by its name in the file, or by its flag.
    pub(super) fn text(&self, key: &str, flag: &str) -> Option<String> {
        let of_file = || match self.config.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        };
        self.flags.get(flag).cloned().or_else(of_file).filter(|text| !text.is_empty())
    }

    /// Whether a feature gate is on; nothing when nobody says.
    pub(super) fn gate(&self, name: &str) -> Option<bool> {
        let flag = self.flags.get("feature-gates").and_then(|all| {
            let (_, value) = all.split(',').filter_map(|one| one.split_once('=')).find(|(n, _)| n.trim() == name)?;
            value.trim().parse().ok()
        });
        flag.or_else(|| self.config.get("featureGates")?.get(name)?.as_bool())
    }

    /// The thresholds of hard evictions; nothing when nobody names any.
    pub(super) fn eviction_hard(&self) -> Option<BTreeMap<String, String>> {
        if let Some(flag) = self.flags.get("eviction-hard") {
            let pairs = flag.split(',').filter_map(|one| one.split_once('<'));
            return Some(pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect());
        }
        let table = self.config.get("evictionHard")?.as_object()?;
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Some(table.iter().map(|(key, value)| (key.clone(), text(value))).collect())
    }

    /// Whether thresholds that are not named have their defaults beside those that are.
    pub(super) fn merges_thresholds(&self) -> bool {
        self.config.get("mergeDefaultEvictionSettings").and_then(Value::as_bool).unwrap_or(false)
    }
}

/// The settings of the node below `root`; nothing when there is no kubelet.
///
/// # Errors
/// When one of its files cannot be read.
pub(super) fn find(root: &Path) -> Result<Option<Settings>, String> {
    if let Some((pid, args)) = running(&root.join("proc")) {
        // A kubelet may run in a root of its own.
        let own = root.join(format!("proc/{pid}/root"));
        return read(format!("process {pid}"), &args, &own).map(Some);
    }
    let Ok(text) = bounded(&root.join(KUBEADM_FLAGS)) else { return Ok(None) };
    let mut args = kubeadm_args(&text);
    if !args.iter().any(|arg| arg.starts_with("--config=")) && inside(root, Path::new(KUBEADM_CONFIG)).exists() {
        args.push(format!("--config={KUBEADM_CONFIG}"));
    }
    read(format!("/{KUBEADM_FLAGS}; no kubelet runs"), &args, root).map(Some)
}

/// The process id and the arguments of the kubelet that runs.
fn running(proc: &Path) -> Option<(u32, Vec<String>)> {
    for entry in fs::read_dir(proc).ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(line) = bounded(&entry.path().join("cmdline")) else { continue };
        let mut words = line.split('\0').filter(|word| !word.is_empty()).map(str::to_owned);
        let program = words.next().unwrap_or_default();
        if Path::new(&program).file_name().is_some_and(|name| name == "kubelet") {
            return Some((pid, words.collect()));
        }
    }
    None
}

fn read(source: String, args: &[String], root: &Path) -> Result<Settings, String> {
    let flags = flags(args);
    let mut settings = Settings { source, config: Value::Null, file: None, flags };
    if let Some(path) = settings.flags.get("config").map(PathBuf::from) {
        settings.config = yaml(&inside(root, &path)).map_err(|why| format!("{}: {why}", path.display()))?;
        settings.file = Some(path);
    }
    if let Some(folder) = settings.flags.get("config-dir") {
        let entries = fs::read_dir(inside(root, Path::new(folder))).map_err(|e| format!("{folder}: {e}"))?;
        let is_conf = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "conf");
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(is_conf).collect();
        files.sort();
        for file in files.iter().take(MAX_FILES) {
            let more = yaml(file).map_err(|why| format!("{}: {why}", file.display()))?;
            merge(&mut settings.config, more);
        }
    }
    Ok(settings)
}

/// `path` of a process whose root is `root`.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// `--name=value` and `--name value`; a flag without a value is on.
fn flags(args: &[String]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        let Some(name) = arg.strip_prefix("--") else { continue };
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => (name, args.next_if(|next| !next.starts_with("--")).cloned().unwrap_or_else(|| "true".into())),
        };
        all.insert(name.to_owned(), value);
    }
    all
}

/// The words of `KUBELET_KUBEADM_ARGS="..."`.
fn kubeadm_args(text: &str) -> Vec<String> {
    let of_line = |line: &str| line.trim().strip_prefix("KUBELET_KUBEADM_ARGS=").map(str::to_owned);
    let line = text.lines().find_map(of_line).unwrap_or_default();
    line.trim_matches(['"', '\'']).split_whitespace().map(str::to_owned).collect()
}

fn yaml(path: &Path) -> Result<Value, String> {
    let text = bounded(path)?;
    // The first line of a message: the rest draws the text.
    serde_saphyr::from_str(&text).map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())
}

fn bounded(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length as u64 > MAX_FILE => Err(format!("it is longer than {MAX_FILE} bytes")),
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Puts `more` on top of `config`: tables key by key, all else as a whole.
fn merge(config: &mut Value, more: Value) {
    match (config, more) {
        (Value::Object(config), Value::Object(more)) => {
            for (key, value) in more {
                merge(config.entry(key).or_insert(Value::Null), value);
            }
        }
        (config, more) => *config = more,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A node below a folder, whose kubelet has these arguments.
    fn node(args: &[&str], files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/7/cmdline", "/usr/bin/other\0kubelet\0");
        write("proc/meminfo", "");
        if !args.is_empty() {
            let line = args.iter().map(|arg| format!("{arg}\0")).collect::<String>();
            write("proc/31/cmdline", &line);
        }
        for (path, text) in files {
            write(path, text);
        }
        dir
    }

    /// What a kubelet with this file and these arguments was told.
    pub(crate) fn settings(config: &str, args: &[&str]) -> Settings {
        let args = [&["/usr/bin/kubelet", "--config=/etc/k.yaml"][..], args].concat();
        find(node(&args, &[("proc/31/root/etc/k.yaml", config)]).path()).unwrap().unwrap()
    }

    #[test]
    fn the_command_line_goes_before_the_files_and_a_later_file_before_an_earlier_one() {
        let args = [
            "/usr/bin/kubelet",
            "--v=2",
            "--config",
            "/etc/k.yaml",
            "--config-dir=/etc/k.d",
            "--cgroup-driver=cgroupfs",
        ];
        let files = [
            ("proc/31/root/etc/k.yaml", "cgroupDriver: systemd\nfeatureGates: {A: true, B: true}\nmaxPods: 7\nx: ''\n"),
            ("proc/31/root/etc/k.d/10.conf", "featureGates: {A: false}\nevictionHard: {imagefs.available: 5%}\n"),
            ("proc/31/root/etc/k.d/20.conf", "evictionHard: {imagefs.available: 9%, memory.available: 100}\n"),
            ("proc/31/root/etc/k.d/30.yaml", "maxPods: 8\n"),
        ];
        let settings = find(node(&args, &files).path()).unwrap().unwrap();
        assert_eq!(
            (settings.source.as_str(), settings.file.as_deref()),
            ("process 31", Some(Path::new("/etc/k.yaml")))
        );
        let text = |key, flag| settings.text(key, flag);
        assert_eq!(text("cgroupDriver", "cgroup-driver").as_deref(), Some("cgroupfs"));
        assert_eq!(text("maxPods", "max-pods").as_deref(), Some("7"));
        assert_eq!((text("x", "x"), text("y", "y")), (None, None));
        assert_eq!((settings.gate("A"), settings.gate("B"), settings.gate("C")), (Some(false), Some(true), None));
        let thresholds = settings.eviction_hard().unwrap();
        assert_eq!((thresholds["imagefs.available"].as_str(), thresholds["memory.available"].as_str()), ("9%", "100"));
    }

    #[test]
    fn flags_alone_are_a_configuration() {
        let args = ["kubelet", "--feature-gates=A=true,B=false", "--eviction-hard=imagefs.available<10%", "--fail"];
        let settings = find(node(&args, &[]).path()).unwrap().unwrap();
        assert_eq!((settings.gate("A"), settings.gate("B"), settings.file.clone()), (Some(true), Some(false), None));
        assert_eq!(settings.eviction_hard().unwrap()["imagefs.available"], "10%");
        assert_eq!(settings.text("fail", "fail").as_deref(), Some("true"));
    }

    #[test]
    fn where_no_kubelet_runs_kubeadm_s_files_count() {
        let flags = "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///x --pod-infra-container-image=y\"\n";
        let files = [(KUBEADM_FLAGS, flags), ("var/lib/kubelet/config.yaml", "cgroupDriver: systemd\n")];
        let settings = find(node(&[], &files).path()).unwrap().unwrap();
        assert!(settings.source.contains("no kubelet runs"));
        assert_eq!(settings.text("", "container-runtime-endpoint").as_deref(), Some("unix:///x"));
        assert_eq!(settings.text("cgroupDriver", "").as_deref(), Some("systemd"));
        assert!(find(node(&[], &[]).path()).unwrap().is_none());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let args = ["kubelet", "--config=/etc/k.yaml"];
        assert!(find(node(&args, &[]).path()).unwrap_err().starts_with("/etc/k.yaml: "));
        for text in ["a: [", "a: b: c", &"x".repeat(1 << 21)] {
            let error = find(node(&args, &[("proc/31/root/etc/k.yaml", text)]).path()).unwrap_err();
            assert!(error.starts_with("/etc/k.yaml: ") && error.lines().count() == 1, "{error}");
        }
    }
}
