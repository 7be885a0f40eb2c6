//! The label values of calls.

use tonic::Code;

/// What a path that is none of ours is counted as.
pub(super) const UNKNOWN: &str = "unknown";

/// Every method, by the path of its service.
const SERVICES: [(&str, &[&str]); 3] = [
    (
        "/runtime.v1.RuntimeService/",
        &[
            "Attach",
            "CheckpointContainer",
            "CheckpointPod",
            "ContainerStats",
            "ContainerStatus",
            "CreateContainer",
            "Exec",
            "ExecSync",
            "GetContainerEvents",
            "ListContainerStats",
            "ListContainers",
            "ListMetricDescriptors",
            "ListPodSandbox",
            "ListPodSandboxMetrics",
            "ListPodSandboxStats",
            "PodSandboxStats",
            "PodSandboxStatus",
            "PortForward",
            "RemoveContainer",
            "RemovePodSandbox",
            "ReopenContainerLog",
            "RestorePod",
            "RunPodSandbox",
            "RuntimeConfig",
            "StartContainer",
            "Status",
            "StopContainer",
            "StopPodSandbox",
            "StreamContainerStats",
            "StreamContainers",
            "StreamPodSandboxMetrics",
            "StreamPodSandboxStats",
            "StreamPodSandboxes",
            "UpdateContainerResources",
            "UpdatePodSandboxResources",
            "UpdateRuntimeConfig",
            "Version",
        ],
    ),
    (
        "/runtime.v1.ImageService/",
        &[
            "ImageFsInfo",
            "ImageStatus",
            "ListImages",
            "ListSecurityProfiles",
            "PullImage",
            "PullSecurityProfile",
            "RemoveImage",
            "RemoveSecurityProfile",
            "StreamImages",
        ],
    ),
    ("/cofferdam.v1.ImageAdmin/", &["ExportImages", "ImportImages", "VerifyLayers"]),
];

/// The method of a request's path, from the list.
pub(super) fn method(path: &str) -> &'static str {
    let known = SERVICES.iter().find_map(|(service, methods)| {
        let name = path.strip_prefix(service)?;
        methods.iter().find(|method| **method == name)
    });
    known.copied().unwrap_or(UNKNOWN)
}

/// A code's name, as gRPC's own libraries spell it.
pub(super) fn code(code: Code) -> &'static str {
    match code {
        Code::Ok => "Ok",
        Code::Cancelled => "Cancelled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Methods are added to CRI; none is to be counted as unknown.
    #[test]
    fn every_method_of_the_protocol_is_known_and_nothing_else() {
        let (mut service, mut count) = (String::new(), 0);
        let cri = include_str!("../../../proto/proto/cri.proto").lines().map(|line| ("runtime.v1", line));
        let images = include_str!("../../../proto/proto/images.proto").lines().map(|line| ("cofferdam.v1", line));
        for (package, line) in cri.chain(images) {
            if let Some(name) = line.strip_prefix("service ").and_then(|rest| rest.split_whitespace().next()) {
                service = format!("/{package}.{name}/");
            }
            if let Some(name) = line.trim_start().strip_prefix("rpc ").and_then(|rest| rest.split('(').next()) {
                assert_eq!(method(&format!("{service}{name}")), name);
                count += 1;
            }
        }
        assert_eq!(count, SERVICES.iter().map(|(_, methods)| methods.len()).sum::<usize>());
        for path in
            ["/", "", "/runtime.v1.RuntimeService/", "/runtime.v1.ImageService/Version", "/runtime.v2.X/Version"]
        {
            assert_eq!(method(path), UNKNOWN, "{path}");
        }
    }
}
