package redfishtest

import (
	"net/http"
	"strconv"
)

// accounts lists the accounts: every user may see that they are there.
func (c *call) accounts() {
	members := []object{}
	for i := range c.s.cfg.Accounts {
		members = append(members, ref(accountsPath+"/"+strconv.Itoa(i+1)))
	}
	c.send(http.StatusOK, object{
		"@odata.id": accountsPath, "@odata.type": "#ManagerAccountCollection.ManagerAccountCollection", "Name": "Accounts",
		"Members": members, "Members@odata.count": len(members),
	})
}

// account shows one: its own user, and who may change users, may see it.
func (c *call) account(id string) {
	i, err := strconv.Atoi(id)
	if err != nil || i < 1 || i > len(c.s.cfg.Accounts) {
		c.fail(http.StatusNotFound, "Base.1.8.ResourceMissingAtURI")
		return
	}
	a := c.s.cfg.Accounts[i-1]
	if a.Name != c.user && c.role != Administrator {
		c.fail(http.StatusForbidden, "Base.1.8.InsufficientPrivilege")
		return
	}
	c.send(http.StatusOK, object{
		"@odata.id": c.path, "@odata.type": "#ManagerAccount.v1_6_0.ManagerAccount", "Id": id, "Name": "Account", "UserName": a.Name, "Password": nil,
		"RoleId": string(a.Role), "Links": object{"Role": ref(rolesPath + "/" + string(a.Role))},
	})
}

// roleOf shows a role with its privileges.
func (c *call) roleOf(id string) {
	privileges := map[Role][]string{
		ReadOnly: {"Login", "ConfigureSelf"}, Operator: {"Login", "ConfigureSelf", "ConfigureComponents"}, Custom: {"Login", "ConfigureSelf"},
		Administrator: {"Login", "ConfigureSelf", "ConfigureComponents", "ConfigureManager", "ConfigureUsers"},
	}[Role(id)]
	if privileges == nil {
		c.fail(http.StatusNotFound, "Base.1.8.ResourceMissingAtURI")
		return
	}
	oem := []string{}
	if Role(id) == Custom && c.s.cfg.OEMRole {
		oem = append(oem, "ServerPower")
	}
	c.send(http.StatusOK, object{
		"@odata.id": c.path, "@odata.type": "#Role.v1_3_0.Role", "Id": id, "Name": "Role", "RoleId": id, "AssignedPrivileges": privileges, "OemPrivileges": oem,
	})
}
