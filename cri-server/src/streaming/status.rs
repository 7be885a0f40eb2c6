//! The end of a remote command as a Kubernetes `Status` object, sent on the error stream.

use serde_json::json;

use super::remote_command::End;

/// As the versions 4 and 5 of the protocol have it.
pub(super) fn json(end: &End) -> Vec<u8> {
    match end {
        End::Exited(code) => exited(*code),
        End::Failed(message) => failed(message),
    }
}

/// As older versions have it: text, and nothing for success.
pub(super) fn text(end: &End) -> Vec<u8> {
    match end {
        End::Exited(0) => Vec::new(),
        End::Exited(code) => non_zero(*code).into_bytes(),
        End::Failed(message) => message.clone().into_bytes(),
    }
}

fn non_zero(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit status {code}")
}

/// The process ended with `code`.
fn exited(code: i32) -> Vec<u8> {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"}).to_string().into_bytes();
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": non_zero(code),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
    .to_string()
    .into_bytes()
}

/// The process could not be run or watched to its end.
fn failed(message: &str) -> Vec<u8> {
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
