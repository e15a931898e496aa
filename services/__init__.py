"""The processes of the mesh: gateway, scheduler, worker."""
