//! The `langevin` command.

fn main() -> std::process::ExitCode {
    langevin::cli::run()
}
