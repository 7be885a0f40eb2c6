//! A guest that stands still: a monitor that makes what it is asked for, and an agent that has, or
//! has not, vCPUs come online.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use cofferdam_proto::monitor::{Memory, Reply, Request, Status, Vcpus};
use cofferdam_proto::packet;
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use rustix::net::{SocketFlags, SocketType, accept_with};
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue, Request as Call, Response};
use tonic::server::NamedService;
use tower::Service;

use crate::dirs::Dirs;
use crate::versions::tests::{ID, SPEC, recorded, serve};
use crate::{Adopted, Pod, Runtime, connect};

/// What is there, and what becomes of the next calls.
#[derive(Debug, Default)]
pub(super) struct State {
    /// vCPUs that the monitor has made.
    pub(super) made: u8,
    /// Those of them that the guest has online.
    pub(super) online: u8,
    /// Beside what it started with.
    pub(super) plugged_mib: u32,
    /// To how many vCPUs the agent was told to change.
    pub(super) asked: Vec<u8>,
    /// How the agent's next calls fail, and how many vCPUs are online then.
    pub(super) failures: VecDeque<(Code, u8)>,
}

/// The guest of a pod that started with one vCPU and 128 MiB, and can have four and 2048 MiB.
#[derive(Clone)]
pub(super) struct Guest(Arc<Mutex<State>>);

/// Its pod; the process stands for the monitor's.
pub(super) struct Running {
    pub(super) pod: Pod,
    pub(super) guest: Guest,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Guest {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// vCPUs online, and MiB beside what it started with.
    pub(super) fn has(&self) -> (u8, u32) {
        let state = self.state();
        (state.online, state.plugged_mib)
    }

    /// Starts it, for a daemon that knows what it started with if it is `known`.
    pub(super) async fn start(known: bool) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::testing::config_below(folder.path());
        let dirs = Dirs::of(&config, ID).unwrap();
        let process = recorded(&dirs, SPEC);
        let guest = Self(Arc::new(Mutex::new(State { made: 1, online: 1, ..State::default() })));
        let (monitor, socket) = (guest.clone(), connect::listener(&dirs.control(), SocketType::SEQPACKET).unwrap());
        std::thread::spawn(move || monitor.monitor(&socket));
        serve(&dirs.vsock(), guest.clone(), true);
        let Adopted::Running(pod) = Runtime::open(config).unwrap().adopt(ID).await.unwrap() else { panic!("it ended") };
        if known {
            pod.has_as_started();
        }
        Running { pod, guest, process, _folder: folder }
    }

    fn monitor(&self, socket: &OwnedFd) {
        while let Ok(connection) = accept_with(socket, SocketFlags::CLOEXEC) {
            while let Ok(Some((request, _))) = packet::recv_all::<Request>(&connection) {
                packet::send(&connection, &self.answer(&request), None).unwrap();
            }
        }
    }

    fn answer(&self, request: &Request) -> Reply {
        let mut state = self.state();
        match *request {
            Request::Hello { api_version } => Reply::Hello { api_version, monitor_version: "0.1.0".into() },
            Request::Vcpus { count } => {
                state.made = state.made.max(count);
                Reply::Done
            }
            Request::Memory { plugged_mib } => {
                state.plugged_mib = plugged_mib;
                Reply::Done
            }
            Request::Status => {
                let mib = state.plugged_mib;
                let memory = Memory { most_mib: 1920, requested_mib: mib, plugged_mib: mib };
                let vcpus = Vcpus { most: 4, made: state.made };
                Reply::Status(Status { memory: Some(memory), vcpus: Some(vcpus), ..Status::default() })
            }
            _ => Reply::Error { message: "this monitor does nothing else".into() },
        }
    }

    /// Has `count` vCPUs online, or fails as it was told to; answers how many were before.
    fn resize(&self, count: u8) -> Result<u8, Code> {
        let mut state = self.state();
        state.asked.push(count);
        let (code, online) = state.failures.pop_front().map_or((None, count), |(code, online)| (Some(code), online));
        let before = std::mem::replace(&mut state.online, online);
        code.map_or(Ok(before), Err)
    }
}

impl NamedService for Guest {
    const NAME: &'static str = "cofferdam.agent.v1.Agent";
}

impl Service<Call<Body>> for Guest {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call<Body>) -> Self::Future {
        let guest = self.clone();
        async move {
            let resizes = call.uri().path().ends_with("/ResizeGuest");
            let sent = call.into_body().collect().await.unwrap().to_bytes();
            let answer = Response::builder().header("content-type", "application/grpc");
            let failed = |code: Code| {
                let answer = Response::builder().header("content-type", "application/grpc");
                answer.header("grpc-status", code as i32).header("grpc-message", "as told").body(Body::empty())
            };
            if !resizes {
                return Ok(failed(Code::Unimplemented).unwrap());
            }
            // A frame of gRPC: not compressed, its length, field 1.
            let [0, 0, 0, 0, 2, 8, count] = sent[..] else { panic!("no ResizeGuestRequest: {sent:?}") };
            let answer = match guest.resize(count) {
                Ok(before) => {
                    let reply = vec![0, 0, 0, 0, 4, 8, count, 16, before];
                    answer.body(Body::new(Full::from(reply).with_trailers(async {
                        let ok = (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
                        Some(Ok(HeaderMap::from_iter([ok])))
                    })))
                }
                Err(code) => failed(code),
            };
            Ok(answer.unwrap())
        }
        .boxed()
    }
}
