use super::*;
use crate::aesthetic::AestheticPredictor;

#[test]
fn ratings_match_pytorch_with_the_published_weights() {
    let Some(folder) = test_support::shared("aesthetic") else { return };
    let reference = Reference::read("metric_aesthetic.safetensors");
    for path in [&folder, &folder.join("sac+logos+ava1-l14-linearMSE.pth")] {
        let predictor = AestheticPredictor::load(path, device()).unwrap();
        let found = predictor.score(reference.tensor("embeddings")).unwrap();
        let difference = (&found - reference.tensor("scores")).abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{difference}");
        let message = predictor.score(&found).unwrap_err().to_string();
        assert_eq!(message, "the aesthetic predictor takes embeddings [n, 768], found [6]");
    }
}

#[test]
fn the_predictor_has_its_number_of_parameters() {
    let p = Params::shapes();
    AestheticPredictor::new(&p, device()).unwrap();
    assert_eq!(p.finish().unwrap().values().map(Tensor::numel).sum::<usize>(), 927_969);
}
