//! What is in the share and is not served all the same.

use libc::EACCES;

use super::client::{Client, ROOT, mount, name, op};

#[test]
fn the_kernel_s_own_file_systems_are_not_served() {
    let Some(mut client) = Client::new() else { return };
    let volume = client.find("volume");
    mount(client.dir.path(), "/proc", "late", false);
    assert_eq!(client.call(op::LOOKUP, ROOT, &name("late")), Err(EACCES), "proc as a volume");
    mount(client.dir.path(), "/proc", "volume/dir", false);
    assert_eq!(client.call(op::LOOKUP, volume, &name("dir")), Err(EACCES), "proc below a volume");
    client.find("volume/file");
}
