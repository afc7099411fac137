"""``v1fast rsa``."""

from pathlib import Path
from typing import Annotated

import typer

from v1fast.cli._common import RealData, in_one_line, need


@in_one_line
def rsa(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            # Not [repeats, ...]: words in brackets are markup.
            help="Responses [S, N], or [R, S, N] of R repeats, of systems to compare with the first: .npy, .npz, .mat, "
            "or FILE:NAME for one of several arrays. None: the recordings in --real-data."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for matrices, summary.json and the pictures.")] = Path("out/rsa"),
    dissimilarity: Annotated[
        str, typer.Option(help="correlation, cosine, euclidean; of repeats, cross-validated: euclidean is crossnobis.")
    ] = "correlation",
    similarity: Annotated[str, typer.Option(help="pearson, spearman, rho-a, tau-a, cosine, whitened-cosine, ...")] = (
        "pearson"
    ),
    noise: Annotated[
        str, typer.Option(help="Covariance of the neurons' noise for euclidean: none, diagonal or ledoit-wolf.")
    ] = "none",
    crossvalidate: Annotated[
        bool, typer.Option(help="Cross-validate matrices of repeats, or compute those of mean responses.")
    ] = True,
    sigma_k: Annotated[
        bool, typer.Option("--sigma-k", help="For whitened measures: with the noise of each stimulus, from repeats.")
    ] = False,
    real_data: RealData = None,
) -> None:
    """Compare the dissimilarity matrices of responses: in files, or of published recordings."""
    need("rsa", "matplotlib")
    from v1fast.rsa.report import analyse_recordings, compare_files

    if files:
        compare_files(
            files,
            out,
            dissimilarity=dissimilarity,
            similarity=similarity,
            noise=noise,
            crossvalidate=crossvalidate,
            sigma_k=sigma_k,
        )
    elif real_data is not None:
        analyse_recordings(real_data, out)
    else:
        raise ValueError("want files of responses, or V1FAST_REAL_DATA set to a folder of recordings")
