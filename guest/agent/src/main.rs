//! The program; everything is in the library, so that the fuzz targets can link it.

fn main() -> std::process::ExitCode {
    cofferdam_agent::main()
}
