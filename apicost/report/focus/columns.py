"""The columns of a FOCUS cost-and-usage file: their order, kinds and where each value comes from.

Rules of this file:
- Columns of the standard come in alphabetical order, those of our own (x_) after them.
- A file has all columns of its version, whether they have a value or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

VERSIONS = ("1.2", "1.4")

TEXT = "text"
DECIMAL = "decimal"
PRICE = "price"  # a decimal that is never negative
TIME = "time"
CURRENCY = "currency"
UNIT = "unit"
TAGS = "tags"  # a flat JSON object
DETAILS = "details"  # a flat JSON object whose keys are FOCUS's own or begin with x_
OBJECT = "object"  # a JSON object

# Names of service subcategories of the one category that a gateway belongs to.
SERVICE_CATEGORY = "Integration"
SERVICE_SUBCATEGORY = "API Management"

CHARGE_CATEGORIES = ("Usage", "Purchase", "Tax", "Credit", "Adjustment")
SERVICE_CATEGORIES = (
    "AI and Machine Learning", "Analytics", "Business Applications", "Compute", "Databases", "Developer Tools",
    "Multicloud", "Identity", "Integration", "Internet of Things", "Management and Governance", "Media", "Migration",
    "Mobile", "Networking", "Security", "Storage", "Web", "Other",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column.

    nullable: whether a cell may be empty at all; rules between columns are those of `lint.py`.
    choices: the accepted values; none is any. versions: those of FOCUS that have it.
    needed: whether a file without it is wrong.
    """

    name: str
    kind: str = TEXT
    nullable: bool = True
    choices: tuple[str, ...] = ()
    versions: tuple[str, ...] = VERSIONS
    needed: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it is a column of this project, not of the standard."""
        return self.name.startswith("x_")

    @property
    def is_decimal(self) -> bool:
        return self.kind in (DECIMAL, PRICE)


def _must(
    name: str, kind: str = TEXT, *, nullable: bool = False, choices: tuple[str, ...] = (), only: str = ""
) -> Column:
    versions = (only,) if only else VERSIONS
    return Column(name=name, kind=kind, nullable=nullable, choices=choices, versions=versions, needed=True)


def _may(
    name: str, kind: str = TEXT, *, nullable: bool = True, choices: tuple[str, ...] = (), only: str = ""
) -> Column:
    versions = (only,) if only else VERSIONS
    return Column(name=name, kind=kind, nullable=nullable, choices=choices, versions=versions)


WRITTEN = (
    _may("AllocatedMethodDetails", OBJECT, only="1.4"),
    _may("AllocatedMethodId", only="1.4"),
    _may("AllocatedResourceId", only="1.4"),
    _may("AllocatedResourceName", only="1.4"),
    _may("AllocatedTags", TAGS, only="1.4"),
    _must("BilledCost", DECIMAL),
    _must("BillingAccountId"),
    _must("BillingAccountName", nullable=True),
    _must("BillingCurrency", CURRENCY),
    _must("BillingPeriodEnd", TIME),
    _must("BillingPeriodStart", TIME),
    _must("ChargeCategory", choices=CHARGE_CATEGORIES),
    _must("ChargeClass", nullable=True, choices=("Correction",)),
    _must("ChargeDescription", nullable=True),
    _may("ChargeFrequency", nullable=False, choices=("One-Time", "Recurring", "Usage-Based")),
    _must("ChargePeriodEnd", TIME),
    _must("ChargePeriodStart", TIME),
    _may("CommitmentDiscountStatus", choices=("Used", "Unused")),
    _may("ConsumedQuantity", DECIMAL),
    _may("ConsumedUnit", UNIT),
    _must("ContractedCost", DECIMAL),
    _may("ContractedUnitPrice", PRICE),
    _must("EffectiveCost", DECIMAL),
    _must("HostProviderName", nullable=True, only="1.4"),
    _may("InvoiceId"),
    _must("InvoiceIssuerName"),
    _must("ListCost", DECIMAL),
    _may("ListUnitPrice", PRICE),
    _may("PricingCategory", choices=("Standard", "Committed", "Dynamic", "Other")),
    _may("PricingCurrency", CURRENCY, nullable=False),
    _may("PricingCurrencyContractedUnitPrice", PRICE),
    _may("PricingCurrencyEffectiveCost", DECIMAL, nullable=False),
    _may("PricingCurrencyListUnitPrice", PRICE),
    _must("PricingQuantity", DECIMAL, nullable=True),
    _must("PricingUnit", UNIT, nullable=True),
    _must("ProviderName", only="1.2"),
    _must("PublisherName", only="1.2"),
    _may("RegionId"),
    _may("RegionName"),
    _may("ResourceId"),
    _may("ResourceName"),
    _may("ResourceType"),
    _must("ServiceCategory", choices=SERVICE_CATEGORIES),
    _must("ServiceName"),
    _must("ServiceProviderName", only="1.4"),
    _may("ServiceSubcategory", nullable=False),
    _may("SkuId"),
    _may("SkuMeter"),
    _may("SkuPriceDetails", DETAILS),
    _may("SkuPriceId"),
    _may("SubAccountId"),
    _may("SubAccountName"),
    _may("Tags", TAGS),
    _may("x_Api"),
    _may("x_ChargeId"),
    _may("x_Consumer"),
    _may("x_FxRate", PRICE),
    _may("x_LlmModel"),
    _may("x_MatchState"),
    _may("x_Method"),
    _may("x_OperationId"),
    _may("x_PathTemplate"),
    _may("x_PriceBookId"),
    _may("x_PriceBookVersion"),
    _may("x_RouteId"),
    _may("x_Scope"),
    _may("x_ServiceId"),
    _may("x_State"),
    _may("x_StateReason"),
    _may("x_StatusClass"),
    _may("x_Tier"),
    _may("x_UpstreamScope"),
)

# Columns of the standard that a file may have and that are not written here: the gateway knows nothing of them.
FOREIGN = (
    _may("AvailabilityZone"),
    _may("BillingAccountType", nullable=False),
    _may("CapacityReservationId"),
    _may("CapacityReservationStatus", choices=("Used", "Unused")),
    _may("CommitmentDiscountCategory", choices=("Spend", "Usage")),
    _may("CommitmentDiscountId"),
    _may("CommitmentDiscountName"),
    _may("CommitmentDiscountQuantity", DECIMAL),
    _may("CommitmentDiscountType"),
    _may("CommitmentDiscountUnit", UNIT),
    _may("CommitmentProgramEligibilityDetails", OBJECT, only="1.4"),
    _may("ContractApplied", OBJECT, only="1.4"),
    _may("InvoiceDetailId", only="1.4"),
    _may("SubAccountType"),
)

# The custom columns and the column of a charge that each is.
OURS: Mapping[str, str] = {
    "x_Api": "api", "x_ChargeId": "charge_id", "x_Consumer": "consumer", "x_FxRate": "fx_rate",
    "x_LlmModel": "llm_model", "x_MatchState": "match_state", "x_Method": "method", "x_OperationId": "operation_id",
    "x_PathTemplate": "path_template", "x_PriceBookId": "price_book_id", "x_PriceBookVersion": "price_book_version",
    "x_RouteId": "route_id", "x_Scope": "scope", "x_ServiceId": "service_id", "x_State": "state",
    "x_StateReason": "reason", "x_StatusClass": "status_class", "x_Tier": "tier", "x_UpstreamScope": "upstream_scope",
}  # fmt: skip


# Columns whose text this program makes: numbers, whose minus sign is theirs, and hexadecimal digits.
MADE = frozenset({"x_ChargeId", *(column.name for column in (*WRITTEN, *FOREIGN) if column.is_decimal)})


def written(version: str) -> tuple[Column, ...]:
    """The columns of a file, in their order. Raises ValueError for a version that is not written."""
    if version not in VERSIONS:
        raise ValueError(f"FOCUS {version!r} is not one of {', '.join(VERSIONS)}")
    return tuple(column for column in WRITTEN if version in column.versions)


def known(version: str) -> Mapping[str, Column]:
    """Every column of the standard's version, and ours, by name."""
    return {column.name: column for column in (*written(version), *FOREIGN) if version in column.versions}
