//! Containers of a host pod, through the real agent. See `support` for what a machine needs.
#![allow(missing_docs)]

mod hostile;
mod lifecycle;
mod like_others;
mod processes;
mod rows;
mod streams;
mod support;
mod users;

use cofferdam_proto::agent::{CreateContainerRequest, Mount, Process};

fn process(r: &mut CreateContainerRequest) -> &mut Process {
    r.process.as_mut().unwrap()
}

fn bind(source: &str, destination: &str) -> Mount {
    Mount { destination: destination.into(), source: source.into(), r#type: "bind".into(), ..Mount::default() }
}
