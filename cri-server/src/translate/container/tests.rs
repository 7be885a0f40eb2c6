use cofferdam_image_store::ImageConfig;
use cofferdam_proto::agent::seccomp::Kind as SeccompKind;
use cofferdam_proto::cri::security_profile::ProfileType;
use cofferdam_proto::cri::{
    Capability, CdiDevice, ContainerMetadata, Device, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, Mount, NamespaceOption, SecurityProfile, UserNamespace,
};

use super::*;
use crate::records::tests::pod as pod_record;
use cofferdam_sandbox::Kind;

pub(crate) fn image() -> Image {
    Image {
        id: "sha256:1".into(),
        repo_tags: vec![],
        repo_digests: vec![],
        size: 1,
        config: ImageConfig {
            user: "www-data".into(),
            env: vec!["PATH=/image/bin".into(), "COLOUR=red".into()],
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            working_dir: "/srv".into(),
            stop_signal: Some("SIGQUIT".into()),
            ..Default::default()
        },
        artifact: None,
        disk_bytes: 0,
        pinned: false,
    }
}

pub(crate) fn asked() -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "app".into(), attempt: 1 }),
        image: Some(cofferdam_proto::cri::ImageSpec {
            image: "sha256:1".into(),
            user_specified_image: "busybox".into(),
            ..Default::default()
        }),
        log_path: "app/1.log".into(),
        linux: Some(LinuxContainerConfig::default()),
        ..Default::default()
    }
}

fn context(asked: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    asked.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn planned(asked: &ContainerConfig) -> Result<ContainerPlan, CriError> {
    plan("id", &pod_record("p"), asked, &image(), 7)
}

fn process_of(asked: &ContainerConfig) -> Process {
    planned(asked).unwrap().request.process.unwrap()
}

#[test]
fn an_artifact_is_no_image_for_a_container() {
    let (tags, kind) = (vec!["registry.example/model:1".to_owned()], "application/vnd.cncf.model.manifest.v1+json");
    let artifact = Image { repo_tags: tags, artifact: Some(kind.into()), ..image() };
    let error = plan("id", &pod_record("p"), &asked(), &artifact, 7).unwrap_err();
    let text = crate::error::message(&error);
    assert!(text.contains("registry.example/model:1") && text.contains(kind) && text.contains("volume"), "{text}");
    assert_eq!(crate::error::code(&error), tonic::Code::FailedPrecondition);
}

#[test]
fn an_image_s_digest_is_that_of_the_repository_that_was_named() {
    let mut image = image();
    let digest = |asked: &ContainerConfig, image: &Image| {
        plan("id", &pod_record("p"), asked, image, 7).unwrap().record.image_digest
    };
    assert_eq!(digest(&asked(), &image), "", "an image without a registry");
    image.repo_digests = vec!["a.example/other@sha256:2".into(), "docker.io/library/busybox@sha256:3".into()];
    assert_eq!(digest(&asked(), &image), "docker.io/library/busybox@sha256:3");
    let mut elsewhere = asked();
    elsewhere.image.get_or_insert_default().user_specified_image = "b.example/gone:1".into();
    assert_eq!(digest(&elsewhere, &image), "a.example/other@sha256:2");
}

#[test]
fn an_image_is_shown_by_a_tag_though_it_is_named_by_its_id() {
    let id = format!("sha256:{}", "ab12".repeat(16));
    let tags = ["docker.io/library/busybox:1", "docker.io/library/busybox:latest"].map(str::to_owned).to_vec();
    let image = Image { id: id.clone(), repo_tags: tags, ..image() };
    let bare = Image { repo_tags: vec![], ..image.clone() };
    let digested = format!("busybox@{id}");
    for (named, by_author, of, shown) in [
        (id.as_str(), "", &image, "docker.io/library/busybox:1"),
        (&id[7..20], "", &image, "docker.io/library/busybox:1"),
        (&id, "busybox", &image, "docker.io/library/busybox:latest"),
        (&id, "docker.io/library/busybox:latest", &image, "docker.io/library/busybox:latest"),
        (&id, "b.example/moved:2", &image, "b.example/moved:2"),
        ("busybox:1", "", &image, "docker.io/library/busybox:1"),
        (&digested, "", &image, digested.as_str()),
        (&id, "", &bare, id.as_str()),
    ] {
        let mut asked = asked();
        let spec = asked.image.get_or_insert_default();
        named.clone_into(&mut spec.image);
        by_author.clone_into(&mut spec.user_specified_image);
        let record = plan("id", &pod_record("p"), &asked, of, 7).unwrap().record;
        let status = crate::translate::filters::container_status(
            &ContainerRecord { phase: ContainerPhase::Created, ..record },
            "",
        );
        assert_eq!(status.unwrap().image.unwrap().image, shown, "{named}, {by_author:?}");
    }
}

#[test]
fn commands_come_from_the_request_or_the_image() {
    for (command, args, wanted) in [
        (vec![], vec![], vec!["/entry", "default"]),
        (vec![], vec!["own"], vec!["/entry", "own"]),
        (vec!["sh"], vec![], vec!["sh"]),
        (vec!["sh"], vec!["-c", "x"], vec!["sh", "-c", "x"]),
    ] {
        let own = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect();
        let config = ContainerConfig { command: own(command), args: own(args), ..asked() };
        assert_eq!(process_of(&config).args, wanted);
    }
    let mut bare = image();
    bare.config.entrypoint.clear();
    bare.config.cmd.clear();
    assert!(plan("id", &pod_record("p"), &asked(), &bare, 7).unwrap_err().to_string().contains("no command"));
    // What `ENTRYPOINT [""]` in a Dockerfile leaves.
    bare.config.entrypoint = vec![String::new()];
    assert!(plan("id", &pod_record("p"), &asked(), &bare, 7).unwrap_err().to_string().contains("no command"));
    bare.config.cmd = vec!["sh".into(), "-c".into()];
    let process = plan("id", &pod_record("p"), &asked(), &bare, 7).unwrap().request.process;
    assert_eq!(process.unwrap().args, ["sh", "-c"]);
}

#[test]
fn variables_are_merged_by_name_and_keep_their_bytes() {
    let pair = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
    let config = ContainerConfig {
        envs: vec![pair("COLOUR", "blue = green"), pair("LINES", "a\nb"), pair("COLOUR", "last")],
        tty: true,
        ..asked()
    };
    let env: Vec<String> = process_of(&config).env.into_iter().map(|e| String::from_utf8(e).unwrap()).collect();
    assert_eq!(env, ["PATH=/image/bin", "HOSTNAME=web", "TERM=xterm", "COLOUR=last", "LINES=a\nb"]);
}

#[test]
fn a_variable_of_the_image_without_a_value_takes_an_earlier_one_away() {
    let mut image = image();
    image.config.env = ["A=1", "HOSTNAME", "A", "B=", "C", "A=2"].map(str::to_owned).to_vec();
    let config = ContainerConfig { envs: vec![KeyValue { key: "C".into(), value: Vec::new() }], ..asked() };
    let process = plan("id", &pod_record("p"), &config, &image, 7).unwrap().request.process.unwrap();
    let env: Vec<String> = process.env.into_iter().map(|e| String::from_utf8(e).unwrap()).collect();
    assert_eq!(env, [&format!("PATH={DEFAULT_PATH}"), "B=", "A=2", "C="]);
}

#[test]
fn security_reaches_the_agent() {
    let mut config = asked();
    let plain = process_of(&config);
    assert_eq!(plain.user.as_ref().unwrap().name, "www-data");
    assert_eq!(plain.cwd, "/srv");
    assert_eq!(plain.seccomp.as_ref().unwrap().kind(), SeccompKind::Unconfined);
    let c = context(&mut config);
    c.run_as_user = Some(Int64Value { value: 1234 });
    c.run_as_group = Some(Int64Value { value: 4321 });
    c.no_new_privs = true;
    c.readonly_rootfs = true;
    c.seccomp = Some(SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() });
    c.masked_paths = vec!["/proc/kcore".into()];
    c.readonly_paths = vec!["/proc/sys".into()];
    c.capabilities = Some(Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    c.namespace_options = Some(NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() });
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { oom_score_adj: 5000, memory_limit_in_bytes: 1 << 20, ..Default::default() });
    config.working_dir = "/tmp".into();
    let plan = planned(&config).unwrap();
    let request = plan.request;
    let process = request.process.unwrap();
    let user = process.user.unwrap();
    assert_eq!((user.uid, user.gid, user.name.as_str()), (Some(1234), Some(4321), ""));
    assert!(process.no_new_privileges && request.readonly_rootfs);
    assert_eq!(process.seccomp.unwrap().kind(), SeccompKind::RuntimeDefault);
    assert!(process.capabilities.unwrap().bounding.is_empty());
    assert_eq!((process.cwd.as_str(), process.oom_score_adj), ("/tmp", Some(1000)));
    assert_eq!((request.masked_paths, request.readonly_paths), (vec!["/proc/kcore".into()], vec!["/proc/sys".into()]));
    assert_eq!(request.namespaces.unwrap().pid(), Pid::Container);
    assert_eq!(request.resources.unwrap().memory_limit_bytes, 1 << 20);
    assert_eq!((request.stop_signal, plan.record.stop_signal), (3, 3));
    assert_eq!((plan.record.image_id.as_str(), plan.record.user_image.as_str()), ("sha256:1", "busybox"));
}

#[test]
fn privileged_lifts_the_limits_and_needs_a_privileged_pod() {
    let mut config = asked();
    let c = context(&mut config);
    c.privileged = true;
    c.masked_paths = vec!["/proc/kcore".into()];
    c.seccomp = Some(SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() });
    assert!(planned(&config).is_err());
    let pod = PodRecord { privileged: true, ..pod_record("p") };
    let request = plan("id", &pod, &config, &image(), 7).unwrap().request;
    assert!(request.privileged && request.masked_paths.is_empty());
    let process = request.process.unwrap();
    assert_eq!(process.capabilities.unwrap().effective.len(), 41);
    assert_eq!(process.seccomp.unwrap().kind(), SeccompKind::Unconfined);
}

#[test]
fn volumes_of_the_image_reach_the_agent() {
    let mut image = image();
    image.config.volumes = vec!["/data".into(), "/var/lib/db".into()];
    let request = plan("id", &pod_record("p"), &asked(), &image, 7).unwrap().request;
    assert_eq!(request.image_volumes, image.config.volumes);
}

#[test]
fn devices_reach_the_agent_of_a_host_pod() {
    let device = Device { container_path: "/dev/a".into(), host_path: "/dev/null".into(), permissions: "rw".into() };
    let config = ContainerConfig { devices: vec![device], ..asked() };
    assert!(planned(&config).unwrap_err().to_string().contains("microVM"));
    let host = PodRecord { kind: Kind::Host, ..pod_record("p") };
    let plan = plan("id", &host, &config, &image(), 7).unwrap();
    assert_eq!(plan.request.devices[0].source, "/dev/null");
    assert!(plan.disks.is_empty());
}

#[test]
fn crooked_containers_are_refused() {
    type Spoil = fn(&mut ContainerConfig);
    let rows: [(&str, Spoil); 23] = [
        ("no metadata", |c| c.metadata = None),
        ("no name", |c| c.metadata.as_mut().unwrap().name.clear()),
        ("newline in the name", |c| c.metadata.as_mut().unwrap().name = "a\nb".into()),
        ("climbing log", |c| c.log_path = "../../etc/cron.d/x".into()),
        ("absolute log", |c| c.log_path = "/etc/cron.d/x".into()),
        ("relative folder", |c| c.working_dir = "tmp".into()),
        ("newline in the folder", |c| c.working_dir = "/a\nb".into()),
        ("NUL in an argument", |c| c.args = vec!["a\0b".into()]),
        ("empty command", |c| c.command = vec![String::new()]),
        ("long argument", |c| c.args = vec!["a".repeat(200_000)]),
        ("many arguments", |c| c.args = vec!["a".into(); 20_000]),
        ("variable without a name", |c| c.envs.push(KeyValue::default())),
        ("variable with =", |c| c.envs.push(KeyValue { key: "A=B".into(), value: Vec::new() })),
        ("NUL in a variable", |c| c.envs.push(KeyValue { key: "A".into(), value: "\0".into() })),
        ("CDI", |c| c.cdi_devices.push(CdiDevice { name: "v/c=d".into() })),
        ("relative masked path", |c| context(c).masked_paths = vec!["proc".into()]),
        ("AppArmor profile", |c| {
            let kind = ProfileType::Localhost.into();
            context(c).apparmor =
                Some(SecurityProfile { profile_type: kind, localhost_ref: "x".into(), ..Default::default() });
        }),
        ("node's processes", |c| {
            context(c).namespace_options =
                Some(NamespaceOption { pid: NamespaceMode::Node.into(), ..Default::default() });
        }),
        ("target without a name", |c| {
            context(c).namespace_options =
                Some(NamespaceOption { pid: NamespaceMode::Target.into(), ..Default::default() });
        }),
        ("user namespace", |c| {
            context(c).namespace_options =
                Some(NamespaceOption { userns_options: Some(UserNamespace::default()), ..Default::default() });
        }),
        ("cgroups to write to", |c| context(c).cgroup_mount_mode = 2),
        ("unknown capability", |c| {
            context(c).capabilities = Some(Capability { add_capabilities: vec!["ROOT".into()], ..Default::default() });
        }),
        ("volume over the root", |c| {
            c.mounts.push(Mount { container_path: "/".into(), host_path: "/".into(), ..Default::default() });
        }),
    ];
    for (name, spoil) in rows {
        let mut config = asked();
        spoil(&mut config);
        let error = planned(&config).expect_err(name);
        assert!(matches!(error, CriError::Invalid(_)), "{name}: {error}");
    }
}

#[test]
fn an_image_s_bad_value_fails_the_container_that_uses_it() {
    let refused = |config: ImageConfig, asked: &ContainerConfig| {
        let image = Image { config: ImageConfig { entrypoint: vec!["/entry".into()], ..config }, ..image() };
        plan("id", &pod_record("p"), asked, &image, 7).is_err()
    };
    let env = |entry: &str| ImageConfig { env: vec![entry.into()], ..Default::default() };
    for (what, config, bad) in [
        ("user", ImageConfig { user: "a\nroot:x:0:0".into(), ..Default::default() }, true),
        ("user's length", ImageConfig { user: "a".repeat(300), ..Default::default() }, true),
        ("working directory", ImageConfig { working_dir: "/a\r".into(), ..Default::default() }, true),
        ("relative working directory", ImageConfig { working_dir: "a".into(), ..Default::default() }, true),
        ("HOME", env("HOME=/\nroot::0:0::/:/bin/sh"), true),
        ("variable's name", env("A\nB=1"), true),
        ("variable's NUL", env("A=\0"), true),
        ("argument's NUL", ImageConfig { cmd: vec!["a\0b".into()], ..Default::default() }, true),
        ("volume's newline", ImageConfig { volumes: vec!["/a\nb".into()], ..Default::default() }, true),
        ("HOME with a colon", env("HOME=/a:/b"), false),
        ("stop signal", ImageConfig { stop_signal: Some("SIGTERM # nice".into()), ..Default::default() }, false),
    ] {
        assert_eq!(refused(config, &asked()), bad, "{what}");
    }
    let mut other_user = asked();
    context(&mut other_user).run_as_user = Some(Int64Value { value: 5 });
    assert!(!refused(ImageConfig { user: "a\tb".into(), ..Default::default() }, &other_user), "not used");
}

#[test]
fn an_image_s_relative_volumes_begin_at_the_root() {
    let mut image = image();
    image.config.volumes = vec!["data".into(), "['/a', '/b']".into(), "/srv".into()];
    let plan = plan("id", &pod_record("p"), &asked(), &image, 7).unwrap();
    assert_eq!(plan.request.image_volumes, ["/data", "/['/a', '/b']", "/srv"]);
    assert_eq!(plan.request.stop_signal, 3);
}
