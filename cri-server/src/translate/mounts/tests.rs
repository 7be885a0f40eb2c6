use super::*;

fn mount(container: &str, host: &str) -> Mount {
    Mount { container_path: container.into(), host_path: host.into(), ..Default::default() }
}

#[test]
fn folders_come_before_what_lies_in_them() {
    let asked = [mount("/data/deep/er", "/a"), mount("relative", "/b"), mount("/data", "/c")];
    let volumes = volumes(&asked, Kind::Vm, None).unwrap();
    let order: Vec<_> = volumes.iter().map(|v| v.mount.destination.as_str()).collect();
    assert_eq!(order, ["/relative", "/data", "/data/deep/er"]);
}

#[test]
fn the_nodes_devices_are_not_those_of_a_guest() {
    let asked = [mount("/dev/", "/dev"), mount("/host/dev", "/dev"), mount("/dev/shm", "/srv")];
    let of = |kind| volumes(&asked, kind, None).unwrap().into_iter().map(|v| v.mount.destination).collect::<Vec<_>>();
    assert_eq!(of(Kind::Vm), ["/host/dev", "/dev/shm"]);
    assert_eq!(of(Kind::Host), ["/dev/", "/host/dev", "/dev/shm"]);
}

#[test]
fn propagation_needs_a_mount_that_has_it() {
    let on = |point: &str, shared, slave| MountInfo { point: point.into(), shared, slave, ..MountInfo::default() };
    let mounts = [on("/", true, false), on("/private", false, false), on("/slave", false, true)];
    for (propagation, source, fine) in [
        ("shared", "/srv", true),
        ("slave", "/srv", true),
        ("shared", "/slave/x", false),
        ("slave", "/slave/x", true),
        ("shared", "/private/x", false),
        ("slave", "/private", false),
        ("private", "/private", true),
        ("shared", "/privately", true),
    ] {
        let asked = agent::Mount { destination: "/v".into(), propagation: propagation.into(), ..Default::default() };
        let checked = propagates(Path::new(source), &asked, &mounts);
        assert_eq!(checked.is_ok(), fine, "{propagation} {source}");
        if let Err(error) = checked {
            let named = format!("{source} is on /{}", source.split('/').nth(1).unwrap());
            assert!(error.to_string().contains(&named), "{error}");
        }
    }
}

fn image(name: &str) -> ImageSpec {
    ImageSpec { image: name.into(), user_specified_image: "docs:1".into(), ..Default::default() }
}

#[test]
fn access_and_options_are_passed_on() {
    let access = |read_only, recursive, follow| Access { read_only, recursive, follow, ..Access::default() };
    let slave = MountPropagation::PropagationHostToContainer;
    let private = MountPropagation::PropagationPrivate;
    for (readonly, recursive, propagation, wanted) in [
        (false, false, private, access(false, false, false)),
        (true, false, private, access(true, false, false)),
        (true, true, private, access(true, true, false)),
        (true, false, slave, access(true, false, true)),
    ] {
        let asked = Mount {
            readonly,
            recursive_read_only: recursive,
            propagation: propagation.into(),
            mount_options: vec!["noexec".into(), "nosuid".into()],
            ..mount("/data", "/srv")
        };
        let volume = volumes(std::slice::from_ref(&asked), Kind::Vm, None).unwrap().remove(0);
        assert_eq!(volume.source, Source::Node { host_path: "/srv".into(), access: wanted });
        assert_eq!((volume.mount.readonly, volume.mount.recursive_readonly), (readonly, recursive));
        assert_eq!(volume.mount.options, ["noexec", "nosuid"]);
        assert_eq!(status(&record(&asked)), asked, "the status says what was asked for");
    }
}

#[test]
fn image_volumes() {
    let asked = |sub: &str| Mount {
        readonly: true,
        image: Some(image("docs@1")),
        image_sub_path: sub.into(),
        ..mount("/data", "")
    };
    for (sub, wanted) in [("", ""), ("etc", "etc"), ("a/./b//c/", "a/b/c"), (".", "")] {
        let volume = volumes(&[asked(sub)], Kind::Vm, None).unwrap().remove(0);
        assert_eq!(volume.source, Source::Image("docs@1".into()));
        assert_eq!((volume.mount.r#type.as_str(), volume.mount.sub_path.as_str()), ("image", wanted));
    }
    for bad in ["/etc", "../etc", "a/../../etc", "a\0b"] {
        assert!(volumes(&[asked(bad)], Kind::Host, None).is_err(), "{bad:?}");
    }
    let mut kept = record(&asked("etc"));
    kept.image.as_mut().unwrap().id = "sha256:1".into();
    let told = status(&kept);
    let image = told.image.unwrap();
    assert_eq!((image.image.as_str(), image.image_ref.as_str()), ("docs@1", "sha256:1"));
    assert_eq!((told.image_sub_path.as_str(), image.user_specified_image.as_str()), ("etc", "docs:1"));
}

#[test]
fn crooked_volumes_are_refused() {
    type Spoil = fn(&mut Mount);
    let rows: [(&str, Spoil); 14] = [
        ("root", |m| m.container_path = "/".into()),
        ("empty", |m| m.container_path.clear()),
        ("climbs", |m| m.container_path = "/a/../../etc".into()),
        ("newline", |m| m.container_path = "/a\n/b".into()),
        ("NUL", |m| m.host_path = "/a\0b".into()),
        ("no source", |m| m.host_path.clear()),
        ("relative source", |m| m.host_path = "a".into()),
        ("recursive read-only, but writable", |m| m.recursive_read_only = true),
        ("recursive read-only that follows the node's mounts", |m| {
            (m.readonly, m.recursive_read_only) = (true, true);
            m.propagation = MountPropagation::PropagationHostToContainer.into();
        }),
        ("unknown option", |m| m.mount_options = vec!["noexec".into(), "size=1".into()]),
        ("mapped", |m| m.uid_mappings.push(Default::default())),
        ("unknown propagation", |m| m.propagation = 9),
        ("image and path", |m| (m.image, m.readonly) = (Some(image("a")), true)),
        ("writable image", |m| (m.image, m.host_path) = (Some(image("a")), String::new())),
    ];
    for (name, spoil) in rows {
        let mut m = mount("/data", "/srv");
        spoil(&mut m);
        assert!(volumes(&[m], Kind::Host, None).is_err(), "{name}");
    }
    let mut both = mount("/data", "/srv");
    both.propagation = MountPropagation::PropagationBidirectional.into();
    let error = volumes(std::slice::from_ref(&both), Kind::Vm, None).unwrap_err().to_string();
    assert!(error.contains("\"host\""), "names the handler that can: {error}");
    assert_eq!(volumes(&[both], Kind::Host, None).unwrap()[0].mount.propagation, "shared");
}

#[test]
fn sources_are_resolved_or_made() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap().join("real");
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
    assert_eq!(source(&dir.path().join("link")).unwrap(), real);
    assert!(source(&dir.path().join("new/folder")).unwrap().is_dir());
    std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join("dangling")).unwrap();
    assert!(source(&dir.path().join("dangling")).is_err());
}
