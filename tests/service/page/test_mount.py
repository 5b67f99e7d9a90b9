"""Mount of the page in the API's application."""

import subprocess
import sys
from pathlib import Path

from service.db.database import upgrade_to_head
from tests.repository.test_architecture import HEAVY
from tests.support.service_helpers import make_settings


def test_an_api_with_its_page_loads_no_library_of_socket_clients_and_nothing_heavy(tmp_path: Path) -> None:
    """aiohttp and requests, which engineio imports for clients, would be most of what the page adds to the start."""
    settings = make_settings(tmp_path)
    settings.make_folders()
    upgrade_to_head(settings.database)
    unwanted = {"aiohttp", "requests", *HEAVY}
    code = f"""if True:
        import sys
        from pathlib import Path
        from service.api.server import build_server
        from service.settings import Settings
        folders = {{"data_dir": Path({str(settings.data_dir)!r}), "data_root": Path({str(settings.data_root)!r})}}
        build_server(Settings(**folders), with_page=True)
        print("nicegui" in sys.modules, *{unwanted!r} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["True"]
