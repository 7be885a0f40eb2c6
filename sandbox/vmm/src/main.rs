//! `cofferdam-vmm --config-fd N`: one process, one microVM (`cofferdam_proto::monitor`).

mod counters;
mod devices;
mod event_loop;

fn main() {}
