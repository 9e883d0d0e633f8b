//! The cuda device: what it says where there is no GPU, and all of it on a driver that plays one (`examples/fake_libcuda.rs`).
#![cfg(feature = "cuda")]

use langevin::{Device, Error};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with the driver that plays a GPU, where `cargo test` built it: it builds examples when it runs all tests.
fn fake() -> Option<tempfile::TempDir> {
    let programs = std::env::current_exe().unwrap();
    let library = programs.parent().and_then(Path::parent).unwrap().join("examples/libfake_libcuda.so");
    if !library.exists() {
        assert!(std::env::var_os("CI").is_none(), "{} was not built", library.display());
        eprintln!("skipped: {} is not there; `cargo build --example fake_libcuda` makes it", library.display());
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(&library, folder.path().join("libcuda.so")).unwrap();
    Some(folder)
}

/// Runs `langevin` with that driver in a folder of its own.
fn langevin(driver: &Path, set: &[(&str, &str)], line: &str) -> (Output, tempfile::TempDir) {
    let place = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_langevin"));
    command.current_dir(place.path()).env("LD_LIBRARY_PATH", driver).env("LANGEVIN_ADAPTER", "none");
    let output = command.envs(set.iter().copied()).args(line.split(' ')).output().unwrap();
    (output, place)
}

fn passes(driver: &Path, line: &str) -> (String, tempfile::TempDir) {
    let (output, place) = langevin(driver, &[], line);
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    (text(&output.stdout), place)
}

/// Without a driver, a GPU, or a new enough one of either it is an error that says so.
#[test]
fn a_machine_without_a_gpu_is_told_so() {
    match Device::cuda() {
        Ok(device) => eprintln!("there is a GPU here: {device:?}"),
        Err(Error::Device { device: "cuda", reason }) => {
            let required = std::env::var("LANGEVIN_REQUIRE").is_ok_and(|r| r.split(',').any(|d| d == "cuda"));
            assert!(!required, "LANGEVIN_REQUIRE asks for cuda: {reason}");
            eprintln!("no GPU: {reason}");
        }
        Err(other) => panic!("{other}"),
    }
    let Some(driver) = fake() else { return };
    for (set, words) in [
        (("FAKE_DRIVER", "11080"), "for CUDA 11.8: install one for CUDA 12.0"),
        (("FAKE_GPUS", "0"), "sees no GPU"),
        (("FAKE_COMPUTE", "75"), "compute capability 7.5, the kernels need 8.0"),
    ] {
        let (output, _) = langevin(driver.path(), &[set], "kernels check activation --device cuda");
        assert_eq!(output.status.code(), Some(1), "{set:?}");
        assert!(text(&output.stderr).contains(words), "{set:?}: {}", text(&output.stderr));
        // `auto` goes on without a word: there is nothing that anybody could use.
        let (output, _) = langevin(driver.path(), &[set], "devices --json");
        let devices: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(devices["devices"][0]["available"], false, "{devices}");
        assert_eq!(devices["auto"], "cpu", "{devices}");
    }
}

#[test]
fn a_driver_that_lacks_a_function_is_named() {
    let driver = tempfile::tempdir().unwrap();
    // A library that is none of CUDA's.
    let Some(libc) =
        ["/lib/x86_64-linux-gnu/libm.so.6", "/usr/lib64/libm.so.6"].map(PathBuf::from).into_iter().find(|p| p.exists())
    else {
        eprintln!("skipped: no shared library is where one is expected");
        return;
    };
    std::fs::copy(libc, driver.path().join("libcuda.so")).unwrap();
    let (output, _) = langevin(driver.path(), &[], "kernels check activation --device cuda");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("has no `cu"), "{}", text(&output.stderr));
}

/// Every op of two networks and of their gradients, through module, launch and graph, and back to the host.
#[test]
fn kernels_are_right_through_the_driver() {
    let Some(driver) = fake() else { return };
    let (devices, _) = passes(driver.path(), "devices");
    assert!(devices.contains("* cuda  a fake GPU, compute capability 8.0"), "{devices}");
    passes(driver.path(), "kernels check --device cuda");
    passes(driver.path(), "kernels check --device cuda --training --dtype f32");
    let (times, _) = passes(driver.path(), "kernels bench activation --device cuda --dtype f32 --runs 1");
    assert!(times.contains("1.0000 ms") && times.contains("% of roofline"), "{times}");
}

/// A schedule of rows: the loop's program becomes a graph once, and its rows are read from the device's table. The driver runs last whatever does not
/// wait for its turn.
#[test]
fn samples_are_those_of_the_cpu() {
    let Some(driver) = fake() else { return };
    let (ampere, hopper) = ([("FAKE_COMPUTE", "80")], [("FAKE_COMPUTE", "90")]);
    same_samples(driver.path(), &ampere, "sample --model mnist-dit --n 1 --steps 3 --out a.png --device");
    same_samples(
        driver.path(),
        &ampere,
        "sample --model mnist-unet --n 1 --steps 1 --sampler euler --out a.png --device",
    );
    same_samples(driver.path(), &hopper, "sample --model mnist-dit --n 1 --steps 2 --out a.png --device");
}

fn same_samples(driver: &Path, set: &[(&str, &str)], line: &str) {
    let (output, on_gpu) = langevin(driver, set, &format!("{line} cuda"));
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    let (_, on_cpu) = passes(driver, &format!("{line} cpu"));
    let pixels = |place: &tempfile::TempDir| {
        let file = std::io::BufReader::new(std::fs::File::open(place.path().join("a.png")).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels
    };
    let (a, b) = (pixels(&on_gpu), pixels(&on_cpu));
    assert_eq!(a.len(), b.len());
    let far = a.iter().zip(&b).filter(|(a, b)| a.abs_diff(**b) > 1).count();
    assert_eq!(far, 0, "of {} pixels", a.len());
}

/// Hopper's products, whose operands the driver describes.
#[test]
fn products_of_hopper_get_their_tensor_maps() {
    let Some(driver) = fake() else { return };
    let line = "kernels check linear --model tiny-dit --batch 64 --device cuda --dtype bf16";
    let hopper = [("FAKE_COMPUTE", "90")];
    let (output, _) = langevin(driver.path(), &hopper, line);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // They were among them: the file of the other kernels does not do.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("linear.ptx");
    std::fs::write(&file, include_str!("../kernels/ptx/sm_80/linear.ptx")).unwrap();
    let (output, _) = langevin(driver.path(), &hopper, &format!("{line} --replace linear={}", file.display()));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("no entry `product_128_bf16`"), "{}", text(&output.stderr));
}

#[test]
fn faults_are_typed() {
    let Some(driver) = fake() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.ptx");
    let line = format!("kernels check activation --device cuda --dtype f32 --replace activation={}", file.display());
    let fails = |set: &[(&str, &str)], line: &str, words: &[&str]| {
        let (output, _) = langevin(driver.path(), set, line);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
        words.iter().for_each(|word| assert!(text(&output.stderr).contains(word), "{word}: {}", text(&output.stderr)));
    };
    let own = include_str!("../kernels/ptx/sm_80/activation.ptx");
    std::fs::write(&file, own.replace("mul.f32", "mull.f32")).unwrap();
    fails(&[], &line, &["activation", "rejected", "CUDA_ERROR_INVALID_IMAGE", "mull.f32"]);
    std::fs::write(&file, own.replace("activation_f32", "activation_f64")).unwrap();
    fails(&[], &line, &["no entry `activation_f32`"]);
    let other = include_str!("../kernels/ptx/sm_80/binary.ptx").replace("add_f32", "activation_f32");
    std::fs::write(&file, other).unwrap();
    fails(&[], &line, &["parameters of [8, 8, 4, 4] bytes for a kernel that takes [8, 8, 8, 4, 4]"]);
    // It ends at its first store.
    let trap = own.replace("st.global", "trap;\n\tst.global");
    std::fs::write(&file, trap).unwrap();
    fails(&[], &line, &["device cuda was lost", "while the GPU ran case", "unspecified launch failure"]);
    fails(
        &[("FAKE_MEMORY", "1000")],
        "kernels check linear --device cuda --dtype f32",
        &["no memory for the arena", "MiB are free"],
    );
}
