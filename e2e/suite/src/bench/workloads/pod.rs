//! A pod that works: two processors and 512 MiB, one container of the workloads' image, a volume
//! that the node writes to and one that is the pod's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_proto::cri;

use super::network::{Errors, Servers, default_gateway};
use super::operations::{Before, Measure, Operation};
use crate::failure::{Doing, Failure, Outcome};
use crate::pod_cgroup::Parent;
use crate::rpc::{Client, Net, container_config};

/// Made by e2e/node/workloads_image.py.
pub(super) const IMAGE: &str = "registry.k8s.io/cofferdam/bench/workloads:1";
const KUBELETS_PODS: &str = "/var/lib/kubelet/pods";
const MIB: i64 = 1 << 20;
/// What each container may use, MiB, and what a pod's sandbox may beside it.
const MEMORY: i64 = 512;
const OVERHEAD: i64 = 60;
/// Two processors, in microseconds of a period.
const CPU: (i64, i64) = (200_000, 100_000);
/// A guest takes what it knows of the node's volume for true so long at most; the other pods wait,
/// too.
const FORGETS: Duration = Duration::from_millis(1500);

/// What the node puts into the volumes: one large file, small ones, and a tree into the pod's own.
const LARGE_MIB: usize = 64;
const SMALL_FILES: usize = 160;
const SMALL_SIZE: usize = 4096;
const TREE: (usize, usize) = (40, 25);

/// A pod and its one container, both running.
pub(super) struct Pod {
    pub(super) who: &'static str,
    pub(super) id: String,
    client: Client,
    container: String,
    gateway: String,
    /// The kubelet's folder of the pod.
    folder: PathBuf,
    volume: PathBuf,
    parent: Parent,
}

impl Pod {
    pub(super) async fn start(mut client: Client, who: &'static str, handler: &str) -> Outcome<Self> {
        let name = match who {
            "vm" => "/kubepods/bench-work-vm",
            "host" => "/kubepods/bench-work-host",
            _ => "/kubepods/bench-work-peer",
        };
        let overhead = if who == "vm" { OVERHEAD } else { 0 };
        let most = ((MEMORY + overhead) * MIB).to_string();
        let parent = Parent::new(name, &[("memory.max", &most), ("cpu.max", &format!("{} {}", CPU.0, CPU.1))])?;
        let resources = cri::LinuxContainerResources {
            cpu_period: CPU.1,
            cpu_quota: CPU.0,
            memory_limit_in_bytes: MEMORY * MIB,
            ..Default::default()
        };
        let mut config = client.pod_config(Net::Cni);
        let linux = config.linux.get_or_insert_default();
        linux.cgroup_parent = parent.name.into();
        linux.resources = Some(resources.clone());
        linux.overhead =
            Some(cri::LinuxContainerResources { memory_limit_in_bytes: overhead * MIB, ..Default::default() });
        let uid = config.metadata.as_ref().map(|metadata| metadata.uid.clone()).unwrap_or_default();
        let folder = Path::new(KUBELETS_PODS).join(uid);
        let volume = folder.join("volumes/kubernetes.io~local-volume/work");
        fs::create_dir_all(&volume).doing("make the node's volume")?;
        let own = folder.join("volumes/kubernetes.io~empty-dir/own");
        make_tree(&own)?;
        let hosts = folder.join("etc-hosts");
        fs::write(&hosts, "127.0.0.1\tlocalhost\n").doing("write the pod's hosts file")?;

        let (id, config) = client.run_pod_of(handler, config).await?;
        let mut worker = container_config("worker", IMAGE, &["sleep", "1000000"]);
        worker.linux.get_or_insert_default().resources = Some(resources);
        worker.mounts = vec![mount("/volume", &volume), mount("/own", &own), mount("/etc/hosts", &hosts)];
        let container = client.create(&id, config, worker).await?;
        client.start_container(&container).await?;
        let route = client.output(&container, &["cat", "/proc/net/route"]).await?;
        let gateway = default_gateway(&route)?.to_string();
        let processors = client.output(&container, &["nproc"]).await?;
        println!("bench: the {who} pod has {} processors; its gateway is {gateway}", processors.trim());
        Ok(Self { who, id, client, container, gateway, folder, volume, parent })
    }

    /// What the node does before the operation. Nothing is left to be written to the disk
    /// meanwhile.
    pub(super) async fn prepare(&self, operation: &Operation) -> Outcome {
        match operation.before {
            Before::Nothing => {}
            Before::Large => {
                let path = self.volume.join("large");
                remove_if_there(fs::remove_file(&path)).doing("remove the large file")?;
                fs::write(path, vec![b'x'; LARGE_MIB << 20]).doing("write the large file")?;
            }
            Before::Small => {
                let folder = self.volume.join("small");
                remove_if_there(fs::remove_dir_all(&folder)).doing("remove the small files")?;
                fs::create_dir(&folder).doing("make the folder of the small files")?;
                (0..SMALL_FILES).try_for_each(|number| {
                    let path = folder.join(format!("file-{number:03}"));
                    fs::write(path, [b'x'; SMALL_SIZE]).doing("write a small file")
                })?;
            }
        }
        rustix::fs::sync();
        if operation.before != Before::Nothing {
            tokio::time::sleep(FORGETS).await;
        }
        Ok(())
    }

    /// Runs an operation; answers its row's value.
    pub(super) async fn run(&mut self, operation: &Operation, servers: &Servers) -> Outcome<f64> {
        let words = operation.words(self.who, &self.gateway, servers);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let began = Instant::now();
        let output = self.client.output(&self.container, &words).await;
        let call = began.elapsed();
        let output =
            output.map_err(|Failure(why)| Failure(format!("{} in the {} pod: {why}", operation.row, self.who)))?;
        let took = if operation.measure == Measure::Call { call } else { nanoseconds(&output)? };
        Ok(operation.measure.value(took))
    }

    /// What has gone wrong on the node's network and the pod's.
    pub(super) async fn errors(&mut self) -> Outcome<Errors> {
        let node = fs::read_to_string("/proc/net/snmp").doing("read /proc/net/snmp")?;
        let pod = self.client.output(&self.container, &["cat", "/proc/net/snmp"]).await?;
        let cards = self.client.output(&self.container, &["cat", "/proc/net/dev"]).await?;
        Errors::read(&node, &pod, &cards)
    }

    /// Removes the pod, its cgroup and its volume.
    pub(super) async fn remove(mut self) -> Outcome {
        let kills = self.parent.oom_kills()?;
        if kills > 0 {
            println!("bench: the node killed {kills} processes of the {} pod for lack of memory", self.who);
        }
        self.client.remove(&self.id).await?;
        fs::remove_dir_all(&self.folder).doing(&format!("remove {}", self.folder.display()))
    }
}

fn mount(container_path: &str, host_path: &Path) -> cri::Mount {
    cri::Mount {
        container_path: container_path.into(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Default::default()
    }
}

/// A volume with a tree.
fn make_tree(volume: &Path) -> Outcome {
    let (folders, files) = TREE;
    for folder in 0..folders {
        let folder = volume.join(format!("tree/folder-{folder:02}"));
        fs::create_dir_all(&folder).doing(&format!("make {}", folder.display()))?;
        for file in 0..files {
            fs::write(folder.join(format!("file-{file:02}")), "a file of the tree\n").doing("write the tree")?;
        }
    }
    Ok(())
}

fn remove_if_there(removed: std::io::Result<()>) -> std::io::Result<()> {
    removed.or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn nanoseconds(output: &str) -> Outcome<Duration> {
    let number = output.trim().parse();
    number.map(Duration::from_nanos).map_err(|_| Failure(format!("not a number of nanoseconds: {output}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_one_number() {
        assert_eq!(nanoseconds("1500\n").unwrap(), Duration::from_nanos(1500));
        assert!(nanoseconds("").is_err());
        assert!(nanoseconds("1\n2\n").is_err());
    }
}
