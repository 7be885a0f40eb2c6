//! The end of a remote command as a Kubernetes `Status` object, sent on the error stream (`v4.channel.k8s.io`).

use serde_json::json;

/// The process ended with `code`.
pub(super) fn exited(code: i32) -> Vec<u8> {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"}).to_string().into_bytes();
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
    .to_string()
    .into_bytes()
}

/// The process could not be run or watched to its end.
pub(super) fn failed(message: &str) -> Vec<u8> {
    json!({
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "InternalError",
        "code": 500,
    })
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    #[test]
    fn exit_codes_are_where_clients_look_for_them() {
        let status: serde_json::Value = serde_json::from_slice(&super::exited(3)).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
        let status: serde_json::Value = serde_json::from_slice(&super::exited(0)).unwrap();
        assert_eq!(status["status"], "Success");
    }
}
