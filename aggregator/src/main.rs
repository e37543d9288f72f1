//! The aggregator's binary; everything is in the library, so that others can run the same program.

fn main() -> std::process::ExitCode {
    weir_aggregator::main()
}
