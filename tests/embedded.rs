//! The models that ship with the library.

use langevin::model::{Embedded, Model};
use langevin::sampler::{Images, SampleRequest};
use langevin::{Device, Error};

fn digits(which: Embedded, n: usize, change: impl FnOnce(&mut SampleRequest)) -> Images {
    let model = Model::embedded(which).unwrap();
    let mut request = SampleRequest { n, ..SampleRequest::new(&model) };
    change(&mut request);
    request.prepare(&model, Device::auto()).unwrap().run(&mut |_| Ok(())).unwrap()
}

#[test]
fn they_are_small_and_their_weights_fit_their_configuration() {
    for which in Embedded::ALL {
        let model = Model::open(which.name()).unwrap();
        assert!(model.weights().byte_count() <= 3_000_000, "{}", which.name());
        assert_eq!(model.network().classes(), Some(10));
        model.build(&langevin::nn::InputSpec::new(1, 28, 28)).unwrap();
    }
    assert_eq!(Embedded::Unet.config(), Embedded::UnetWeak.config());
}

/// Ink is bright on a dark ground: of a digit's pixels a tenth to a quarter are bright, the border none.
#[test]
fn samples_have_the_look_of_digits() {
    for which in Embedded::ALL {
        let images = digits(which, 10, |r| r.steps = r.steps.min(10));
        assert_eq!(images.shape, [10, 1, 28, 28]);
        let mean = images.data.iter().sum::<f32>() / images.data.len() as f32;
        assert!((-0.9..-0.45).contains(&mean), "{}: mean {mean}", which.name());
        let bright = images.data.iter().filter(|v| **v > 0.0).count() as f32 / images.data.len() as f32;
        assert!((0.05..0.3).contains(&bright), "{}: {bright} bright", which.name());
        let border = images.data.chunks(784).flat_map(|i| i[..28].iter().chain(&i[756..]));
        let lit = border.clone().filter(|v| **v > 0.0).count() as f32 / border.count() as f32;
        assert!(lit < 0.05, "{}: {lit} of the border is bright", which.name());
    }
}

/// A 1 has less ink than a 0 or an 8, whoever writes it: the class reaches the picture.
#[test]
fn the_class_decides_what_is_drawn() {
    for which in [Embedded::Unet, Embedded::Dit] {
        let ink = |class: usize| {
            let images = digits(which, 8, |r| (r.classes, r.steps) = (vec![class], r.steps.min(8)));
            images.data.iter().filter(|v| **v > 0.0).count()
        };
        let (one, zero, eight) = (ink(1), ink(0), ink(8));
        assert!(one < zero && one < eight, "{}: ink of 1 {one}, 0 {zero}, 8 {eight}", which.name());
    }
}

#[test]
fn an_image_depends_on_its_seed_and_number_alone() {
    let short = |r: &mut SampleRequest| r.steps = 4;
    let five = digits(Embedded::Unet, 5, short);
    let batches = digits(Embedded::Unet, 5, |r| (r.steps, r.batch) = (4, 2));
    assert_eq!(five, batches);
    let other = digits(Embedded::Unet, 5, |r| (r.steps, r.seed) = (4, 1));
    assert_ne!(five, other);
}

#[test]
fn a_callback_can_stop_a_run_which_can_then_start_again() {
    let model = Model::embedded(Embedded::Unet).unwrap();
    let request = SampleRequest { n: 2, steps: 3, ..SampleRequest::new(&model) };
    let mut sampler = request.prepare(&model, Device::auto()).unwrap();
    let stopped = sampler.run(&mut |p| if p.step == 2 { Err(Error::Cancelled) } else { Ok(()) });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    let first = sampler.run(&mut |_| Ok(())).unwrap();
    assert_eq!(first, sampler.run(&mut |_| Ok(())).unwrap());
}
