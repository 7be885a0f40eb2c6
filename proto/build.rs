//! Compiles the agent's API and CRI with protox, so that no `protoc` is needed for it.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (file, feature) in [("proto/agent.proto", "CARGO_FEATURE_AGENT"), ("proto/cri.proto", "CARGO_FEATURE_CRI")] {
        println!("cargo:rerun-if-changed={file}");
        if std::env::var_os(feature).is_some() {
            let files = protox::compile([file], ["proto"])?;
            tonic_prost_build::configure().compile_fds(files)?;
        }
    }
    Ok(())
}
