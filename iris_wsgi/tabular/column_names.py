"""Search for the columns of features by name: an exact name first, then a name in another spelling."""

from collections.abc import Sequence

from iris_wsgi.codec.model_schema import normalized


class AmbiguousColumns(ValueError):
    """Several columns that fit one feature, or a column that fits several features."""

    def __init__(self, feature: str, columns: Sequence[str], features: Sequence[str] = ()) -> None:
        self.feature = feature
        found = " and ".join(map(repr, columns[:2]))
        fits = f"fits the features {' and '.join(map(repr, features[:2]))}" if features else f"fit the feature {feature!r}"
        super().__init__(f"{found} {fits}")


class FeatureColumns:
    """Finds the column of each feature. Names are equal without case, a unit in brackets, blanks, dots, and underscores."""

    def __init__(self, features: Sequence[str]) -> None:
        self.features = features
        self.names = set(features)
        self.keys = list(map(normalized, features))
        self.features_of: dict[str, list[str]] = {}
        for name, key in zip(features, self.keys, strict=True):
            self.features_of.setdefault(key, []).append(name)

    def find(self, columns: Sequence[str]) -> list[str | None]:
        """Returns the name of each feature's column, or None for a feature without a column. Raises AmbiguousColumns."""
        others: dict[str, list[str]] = {}
        for name in columns:
            if name not in self.names:
                others.setdefault(normalized(name), []).append(name)
        present = self.names.intersection(columns)
        pairs = zip(self.features, self.keys, strict=True)
        return [name if name in present else self.similar(name, key, others.get(key, [])) for name, key in pairs]

    def similar(self, feature: str, key: str, columns: Sequence[str]) -> str | None:
        """Returns the only column with the normalized name `key` of a feature, or None."""
        if not columns:
            return None
        features = self.features_of[key]
        if len(columns) > 1 or len(features) > 1:
            raise AmbiguousColumns(feature, columns, features if len(features) > 1 else ())
        return columns[0]
