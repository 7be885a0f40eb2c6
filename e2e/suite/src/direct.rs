//! The calls of crictl of which the tests make hundreds, made by the suite itself: a process of
//! crictl costs half a second in an emulated node.

use std::path::Path;
use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_proto::cri::runtime_service_client::RuntimeServiceClient;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;

use crate::crictl::Output;
use crate::failure::{Doing, Failure, Outcome};
use crate::rpc;

/// As crictl is told to wait; a command in a container has its own time beside that.
const LIMIT: Duration = Duration::from_secs(300);

type Client = RuntimeServiceClient<Channel>;

/// What crictl would print and how it would end, if `args` are of a call that is made here.
pub(crate) fn call(socket: &Path, args: &[&str]) -> Outcome<Option<Output>> {
    let done = match *args {
        ["runp", file] => run_pod(socket, "", file)?,
        ["runp", "--runtime", handler, file] => run_pod(socket, handler, file)?,
        ["create", pod, container, sandbox] => {
            let request = cri::CreateContainerRequest {
                pod_sandbox_id: pod.into(),
                config: Some(read(container)?),
                sandbox_config: Some(read(sandbox)?),
            };
            ask(socket, async |c| Ok(c.create_container(request).await?.into_inner().container_id))?
        }
        ["start", id] => {
            let request = cri::StartContainerRequest { container_id: id.into() };
            ask(socket, async |c| c.start_container(request).await.map(|_| String::new()))?
        }
        ["stop", "--timeout", seconds, id] => {
            let timeout = seconds.parse().doing("read a time-out")?;
            let request = cri::StopContainerRequest { container_id: id.into(), timeout };
            ask(socket, async |c| c.stop_container(request).await.map(|_| String::new()))?
        }
        ["rm", id] => {
            let request = cri::RemoveContainerRequest { container_id: id.into() };
            ask(socket, async |c| c.remove_container(request).await.map(|_| String::new()))?
        }
        ["stopp", id] => {
            let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
            ask(socket, async |c| c.stop_pod_sandbox(request).await.map(|_| String::new()))?
        }
        ["rmp", id] => {
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
            ask(socket, async |c| c.remove_pod_sandbox(request).await.map(|_| String::new()))?
        }
        ["version"] => {
            let request = cri::VersionRequest { version: "v1".into() };
            ask(socket, async |c| Ok(c.version(request).await?.into_inner().runtime_version))?
        }
        ["pods", "-q"] | ["pods", "-q", "--no-trunc"] => {
            let request = cri::ListPodSandboxRequest { filter: None };
            let ids = |items: Vec<cri::PodSandbox>| items.into_iter().map(|pod| pod.id).collect::<Vec<_>>().join("\n");
            ask(socket, async |c| Ok(ids(c.list_pod_sandbox(request).await?.into_inner().items)))?
        }
        ["ps", "-aq", "--pod", pod] => {
            let filter = cri::ContainerFilter { pod_sandbox_id: pod.into(), ..Default::default() };
            let request = cri::ListContainersRequest { filter: Some(filter) };
            let ids = |items: Vec<cri::Container>| items.into_iter().map(|c| c.id).collect::<Vec<_>>().join("\n");
            ask(socket, async |c| Ok(ids(c.list_containers(request).await?.into_inner().containers)))?
        }
        ["exec", "--sync", "--timeout", seconds, id, ref command @ ..] => {
            exec(socket, id, seconds.parse().doing("read a time-out")?, command)?
        }
        ["exec", "--sync", id, ref command @ ..] => exec(socket, id, 0, command)?,
        _ => return Ok(None),
    };
    Ok(Some(done))
}

/// A container's status.
pub(crate) fn container_status(socket: &Path, id: &str) -> Outcome<cri::ContainerStatus> {
    let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
    let answer = connected(socket, async |c| Ok(c.container_status(request).await?.into_inner().status))?;
    let status = answer.map_err(|status| Failure(format!("ContainerStatus of {id}: {}", as_text(&status))))?;
    status.ok_or_else(|| format!("the status of {id} is empty").into())
}

fn run_pod(socket: &Path, handler: &str, file: &str) -> Outcome<Output> {
    let request = cri::RunPodSandboxRequest { config: Some(read(file)?), runtime_handler: handler.into() };
    ask(socket, async |c| Ok(c.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id))
}

fn exec(socket: &Path, id: &str, timeout: i64, command: &[&str]) -> Outcome<Output> {
    let cmd = command.iter().map(|word| (*word).to_owned()).collect();
    let request = cri::ExecSyncRequest { container_id: id.into(), cmd, timeout };
    let limit = LIMIT + Duration::from_secs(timeout.unsigned_abs());
    let answer = connected_for(limit, socket, async |c| Ok(c.exec_sync(request).await?.into_inner()))?;
    Ok(match answer {
        Ok(ended) => Output {
            code: ended.exit_code,
            stdout: String::from_utf8_lossy(&ended.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&ended.stderr).into_owned(),
        },
        Err(status) => refused(&status),
    })
}

/// A configuration in JSON, as crictl reads it.
fn read<T: DeserializeOwned>(file: &str) -> Outcome<T> {
    let text = std::fs::read(file).doing(&format!("read {file}"))?;
    serde_json::from_slice(&text).doing(&format!("read the configuration in {file}"))
}

fn as_text(status: &tonic::Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

fn refused(status: &tonic::Status) -> Output {
    Output { code: 1, stdout: String::new(), stderr: as_text(status) }
}

/// Makes a call whose answer is one word.
fn ask(socket: &Path, call: impl AsyncFnOnce(&mut Client) -> Result<String, tonic::Status> + Send) -> Outcome<Output> {
    Ok(match connected(socket, call)? {
        Ok(stdout) => Output { code: 0, stdout, stderr: String::new() },
        Err(status) => refused(&status),
    })
}

fn connected<T: Send>(
    socket: &Path,
    call: impl AsyncFnOnce(&mut Client) -> Result<T, tonic::Status> + Send,
) -> Outcome<Result<T, tonic::Status>> {
    connected_for(LIMIT, socket, call)
}

/// Connects, and makes a call, in a thread of its own: the caller may be one of tokio's. A daemon
/// that does not listen refuses the call.
fn connected_for<T: Send>(
    limit: Duration,
    socket: &Path,
    call: impl AsyncFnOnce(&mut Client) -> Result<T, tonic::Status> + Send,
) -> Outcome<Result<T, tonic::Status>> {
    let one = || -> Outcome<Result<T, tonic::Status>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing("start tokio")?;
        Ok(runtime.block_on(async {
            let channel = rpc::channel(socket).await;
            let channel = channel.map_err(|error| tonic::Status::unavailable(format!("{error:?}")))?;
            let answer = tokio::time::timeout(limit, call(&mut Client::new(channel))).await;
            answer.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("the suite waited too long")))
        }))
    };
    std::thread::scope(|scope| scope.spawn(one).join()).unwrap_or_else(|_| Err("the thread of a call failed".into()))
}
