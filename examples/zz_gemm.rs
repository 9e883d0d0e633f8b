use langevin::cpu::gemm::*;
struct Instant(u64);
fn cpu() -> u64 {
    std::fs::read_to_string("/proc/thread-self/schedstat").unwrap().split(' ').next().unwrap().parse().unwrap()
}
impl Instant {
    fn now() -> Self {
        Instant(cpu())
    }
    fn elapsed(&self) -> std::time::Duration {
        std::time::Duration::from_nanos(cpu() - self.0)
    }
}
fn main() {
    let conv = |b: usize, s: usize, c: usize, n: usize| {
        let w = Window {
            height: s,
            width: s,
            channels: c,
            out_height: s,
            out_width: s,
            kernel: 3,
            stride: 1,
            pad_top: 1,
            pad_left: 1,
            dilation: 1,
        };
        let x = vec![0.5f32; b * s * s * c];
        let wt = vec![0.25f32; 9 * c * n.next_multiple_of(16)];
        let m = b * s * s;
        let mut y = vec![0f32; m * n];
        let f = 2.0 * (m * n * 9 * c) as f64;
        let mut best = f64::MAX;
        for _ in 0..8 {
            let t = Instant::now();
            gemm(&Im2col { data: &x, window: w }, &wt, [m, n, 9 * c], &Epilogue::default(), &mut y);
            best = best.min(t.elapsed().as_secs_f64());
        }
        let mut dw = vec![0f32; 9 * c * n.next_multiple_of(16)];
        let mut bw = f64::MAX;
        for _ in 0..4 {
            let t = Instant::now();
            weight_grad(&Im2col { data: &x, window: w }, &y, [m, n, 9, c], &mut dw);
            bw = bw.min(t.elapsed().as_secs_f64());
        }
        println!(
            "conv b{b} {s}x{s} {c}->{n}: {:.2} ms {:.1} GF/s   wgrad {:.2} ms {:.1} GF/s",
            best * 1e3,
            f / best / 1e9,
            bw * 1e3,
            f / bw / 1e9
        );
    };
    conv(1, 32, 128, 128);
    conv(8, 32, 128, 128);
    conv(1, 16, 256, 256);
    conv(1, 8, 256, 256);
    conv(1, 4, 256, 256);
    conv(8, 16, 512, 256);
    conv(1, 64, 320, 320);
    conv(1, 8, 1280, 1280);
    conv(8, 32, 3, 128);
    conv(8, 32, 128, 3);
    let lin = |m: usize, k: usize, n: usize| {
        let x = vec![0.5f32; m * k];
        let wt = vec![0.25f32; k * n.next_multiple_of(16)];
        let mut y = vec![0f32; m * n];
        let f = 2.0 * (m * n * k) as f64;
        let mut best = f64::MAX;
        for _ in 0..8 {
            let t = Instant::now();
            gemm(&Matrix { data: &x, stride: k }, &wt, [m, n, k], &Epilogue::default(), &mut y);
            best = best.min(t.elapsed().as_secs_f64());
        }
        println!("lin {m}x{k}x{n}: {:.3} ms {:.1} GF/s", best * 1e3, f / best / 1e9);
    };
    lin(256, 384, 384);
    lin(256, 384, 1536);
    lin(256, 1536, 384);
    lin(2048, 384, 1536);
    lin(2048, 2048, 2048);
    lin(1, 512, 512);
    lin(1, 1280, 1280);
    lin(64, 1280, 1280);
    lin(4096, 320, 2560);
}
