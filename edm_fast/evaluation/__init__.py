"""How good images are: Fréchet distance, precision and recall against a reference."""

from edm_fast.evaluation.digits import digits_features, digits_images
from edm_fast.evaluation.features import Extractor, TorchScriptExtractor
from edm_fast.evaluation.frechet import frechet_distance
from edm_fast.evaluation.gaussian import Gaussian, RunningGaussian
from edm_fast.evaluation.image_folder import FolderImages
from edm_fast.evaluation.inception import InceptionExtractor
from edm_fast.evaluation.measure import Evaluation, Measurement, compare, measure
from edm_fast.evaluation.precision_recall import PrecisionRecall, precision_recall
from edm_fast.evaluation.sources import ImageSource, SampledImages, TensorImages
from edm_fast.evaluation.statistics_file import read_statistics, write_statistics
from edm_fast.evaluation.tune import Churn, Estimate, Grid, Trial, Tuning, search, tune

__all__ = [
    "Churn",
    "Estimate",
    "Evaluation",
    "Extractor",
    "FolderImages",
    "Gaussian",
    "Grid",
    "ImageSource",
    "InceptionExtractor",
    "Measurement",
    "PrecisionRecall",
    "RunningGaussian",
    "SampledImages",
    "TensorImages",
    "TorchScriptExtractor",
    "Trial",
    "Tuning",
    "compare",
    "digits_features",
    "digits_images",
    "frechet_distance",
    "measure",
    "precision_recall",
    "read_statistics",
    "search",
    "tune",
    "write_statistics",
]
