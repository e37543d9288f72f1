//! `weir-shipper` as the tests run it: the same program, with the crash points that integration's features switch on.

fn main() -> std::process::ExitCode {
    weir_shipper::main()
}
