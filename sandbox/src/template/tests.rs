use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::spec::TemplateConfig;

const USUAL: VmSize = VmSize { vcpus: 1, memory_mib: 256 };

/// Files that are there, so that they can be looked at.
fn config(folder: &Path) -> VmConfig {
    let mut config = crate::testing::config_below(folder).vm;
    for path in [&mut config.monitor, &mut config.kernel, &mut config.initramfs, &mut config.disk_template] {
        *path = folder.join("input");
    }
    std::fs::write(&config.kernel, "one").unwrap();
    let most = VmSize { vcpus: 2, memory_mib: 1024 };
    VmConfig { template: Some(TemplateConfig { size: USUAL, most, cgroup_parent: String::new(), pool: 0 }), ..config }
}

/// Templates with somebody who makes them, and what is asked for.
fn templates() -> (Templates, mpsc::UnboundedReceiver<Shape>) {
    let (maker, asked) = mpsc::unbounded_channel();
    let templates = Templates::default();
    templates.kept().maker = Some(maker);
    (templates, asked)
}

fn made(config: &VmConfig, shape: Shape) -> Template {
    let file = || memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    let memory = file();
    rustix::io::write(&memory, &[1; 8192]).unwrap();
    Template::new(shape, Inputs::of(config).unwrap(), memory, file())
}

/// Templates with the one of the usual pod.
fn with_usual(config: &VmConfig) -> (Templates, mpsc::UnboundedReceiver<Shape>, Shape) {
    let (templates, mut asked) = templates();
    templates.choose(config, USUAL, 1).unwrap_err();
    let shape = asked.try_recv().unwrap();
    templates.add(Arc::new(made(config, shape)));
    (templates, asked, shape)
}

#[test]
fn a_template_is_asked_for_once_and_used_when_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let (templates, mut asked) = templates();
    for _ in 0..2 {
        let why = templates.choose(&config, USUAL, 1).unwrap_err();
        assert!(why.contains("no template of shape 1-2-256-768-1 yet"), "{why}");
    }
    let shape = asked.try_recv().unwrap();
    assert!(asked.try_recv().is_err(), "it was asked for twice");
    assert_eq!((templates.usage().ready, templates.usage().pending), (0, 1));
    templates.add(Arc::new(made(&config, shape)));
    assert_eq!(templates.choose(&config, VmSize { vcpus: 2, memory_mib: 1000 }, 1).unwrap().shape, shape);
    let usage = templates.usage();
    assert_eq!((usage.ready, usage.pending, usage.bytes), (1, 0, 8192));
    assert!(templates.choose(&VmConfig { template: None, ..config }, USUAL, 1).unwrap_err().contains("is off"));
}

#[test]
fn a_template_of_other_inputs_is_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let (templates, mut asked, shape) = with_usual(&config);
    std::fs::write(&config.kernel, "another").unwrap();
    templates.choose(&config, USUAL, 1).unwrap_err();
    assert_eq!((templates.usage().ready, asked.try_recv()), (0, Ok(shape)));
}

#[test]
fn a_template_that_fails_is_not_made_again_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let (templates, mut asked, shape) = with_usual(&config);
    let template = templates.choose(&config, USUAL, 1).unwrap();
    templates.discard(&template);
    templates.choose(&config, USUAL, 1).unwrap_err();
    assert!(asked.try_recv().is_err());
    assert_eq!((templates.usage().ready, templates.usage().failed), (0, 1));
    // Its time has come.
    templates.kept().failures.get_mut(&shape).unwrap().1 = Instant::now();
    templates.choose(&config, USUAL, 1).unwrap_err();
    assert_eq!(asked.try_recv(), Ok(shape));
    for _ in 0..40 {
        templates.kept().failed(shape);
    }
    let wait = templates.kept().failures[&shape].1 - Instant::now();
    assert!(wait <= AGAIN_MOST && wait > AGAIN_MOST / 2, "{wait:?}");
}

#[test]
fn the_one_that_was_not_used_for_the_longest_time_goes() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let (templates, mut asked) = templates();
    for cards in 1..=MOST {
        templates.choose(&config, USUAL, cards).unwrap_err();
        templates.add(Arc::new(made(&config, asked.try_recv().unwrap())));
    }
    templates.choose(&config, USUAL, 1).unwrap();
    templates.choose(&config, USUAL, MOST + 1).unwrap_err();
    templates.add(Arc::new(made(&config, asked.try_recv().unwrap())));
    assert_eq!(templates.usage().ready, MOST);
    assert!(templates.choose(&config, USUAL, 1).is_ok());
    assert!(templates.choose(&config, USUAL, 2).is_err());
}

#[test]
fn the_usual_template_is_asked_for_from_the_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    assert_eq!(Templates::open(&config).usage().pending, 1);
    assert_eq!(Templates::open(&VmConfig { template: None, ..config }).usage().pending, 0);
}
