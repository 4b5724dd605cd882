"""Main model: a scaler, an RBF support vector machine, and a logistic regression, as a pipeline and as a graph."""

from onnx import helper
from onnx_file import classify, constants, floats, scale
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

NAME, VERSION, SEED = "iris_svc", "1.0.0", 1
GAMMA = 0.25  # one over the number of features, each of variance 1 once scaled


def pipeline() -> Pipeline:
    """Returns a scaler and an RBF SVM whose pairwise decisions a multinomial logistic regression turns into probabilities.

    This is Platt's scaling for three classes at once, fitted on out-of-fold decisions. The predicted class is
    the class of the highest probability, which SVC(probability=True) does not guarantee.
    """
    folds = StratifiedKFold(5, shuffle=True, random_state=SEED)
    svm = SVC(C=1.0, kernel="rbf", gamma=GAMMA, tol=1e-8, decision_function_shape="ovo")
    calibration = LogisticRegression(C=10.0, solver="newton-cholesky", tol=1e-12)
    stack = StackingClassifier([("svm", svm)], calibration, stack_method="decision_function", cv=folds)
    return Pipeline([("scaler", StandardScaler()), ("classifier", stack)])


def graph(fitted: Pipeline) -> tuple[list, list]:
    """Returns nodes and weights of the fitted pipeline: float32 [N, 4] to int64 [N] and float32 [N, 3].

    The graph is written by hand, because a converter creates 67 nodes and needs a deprecated attribute of scikit-learn.
    """
    stack = fitted["classifier"]
    svm, calibration = stack.estimators_[0], stack.final_estimator_
    decide = helper.make_node(
        "SVMClassifier",
        ["scaled"],
        ["vote", "decisions"],
        domain="ai.onnx.ml",
        classlabels_ints=svm.classes_.tolist(),
        coefficients=floats(svm.dual_coef_),
        support_vectors=floats(svm.support_vectors_),
        vectors_per_class=svm.n_support_.tolist(),
        rho=floats(svm.intercept_),
        kernel_type="RBF",
        kernel_params=[GAMMA, 0.0, 0.0],
    )
    nodes = [scale(fitted["scaler"]), decide, *classify("decisions")]
    return nodes, constants(weights=calibration.coef_, bias=calibration.intercept_)
