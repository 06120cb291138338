"""Who bills whom, as FOCUS wants it named: what neither usage nor a price book says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FocusSettings:
    """Names in a FOCUS file; the `focus:` section of apicost.yaml. Empty names have the defaults told here.

    region_id, region_name: where the gateway stands; both or none.
    """

    billing_account_id: str = ""  # the price book's id
    billing_account_name: str = ""  # billing_account_id
    invoice_issuer_name: str = ""  # the price book's id
    provider_name: str = ""  # invoice_issuer_name; ServiceProviderName from 1.3 on
    publisher_name: str = ""  # provider_name; of FOCUS 1.2 alone
    host_provider_name: str = ""  # provider_name; of FOCUS 1.4 alone
    service_name: str = "API Gateway"
    region_id: str = ""  # null
    region_name: str = ""  # region_id
    invoice_id: str = ""  # null: no invoice yet
